"""Fixtures that several rooms share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before any import of tokenizers
os.environ.setdefault("TRITON_INTERPRET", "1")  # before any import of triton: its kernels run on CPU tensors here
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any import of torch: threads that wait for busy cores spin

import hypothesis
import pytest

hypothesis.settings.register_profile("shared machine", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)  # of make check
hypothesis.settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests that set another number of threads leave one to the next."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of random three-layer models by architecture: gpt2, llama, neox. See tests/lm/tiny.py."""
    from tests.lm.tiny import write_tiny_hosts

    return write_tiny_hosts(tmp_path_factory.mktemp("hosts"))
