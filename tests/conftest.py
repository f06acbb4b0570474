"""Fixtures that several rooms share."""

import os
import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before any import of tokenizers
os.environ.setdefault("TRITON_INTERPRET", "1")  # before any import of triton: its kernels run on CPU tensors here
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any import of torch: threads that wait for busy cores spin

import hypothesis
import pytest

hypothesis.settings.register_profile("shared machine", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)  # of make check
hypothesis.settings.load_profile("shared machine")


def draw_as(name: str) -> None:
    """Seeds what draws without a generator of its own. SAETOOLS_TEST_SEED tries the suite on other draws."""
    import numpy
    import torch

    seed = zlib.crc32(f"{os.environ.get('SAETOOLS_TEST_SEED', '0')}:{name}".encode())
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """A fixture draws the same numbers whichever test asks for it first: which one does depends on the workers."""
    draw_as(f"{fixturedef.baseid}::{fixturedef.argname}[{getattr(request, 'param_index', 0)}]")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A test draws the same numbers whatever ran before it."""
    draw_as(item.nodeid)


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
