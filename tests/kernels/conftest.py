"""One thread, so that tests are quick on a busy machine; tests of threads set their own number."""

import pytest

from saetools.kernels.backend import set_threads


@pytest.fixture(autouse=True)
def one_thread() -> None:
    set_threads(1)
