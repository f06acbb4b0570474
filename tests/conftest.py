"""Fixtures that several rooms share."""

import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before any import of tokenizers

import hypothesis
import pytest

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def tiny_hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of random three-layer models by architecture: gpt2, llama, neox. See tests/lm/tiny.py."""
    from tests.lm.tiny import write_tiny_hosts

    return write_tiny_hosts(tmp_path_factory.mktemp("hosts"))
