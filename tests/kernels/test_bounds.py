"""Compiled loops have no bounds checks: here the same functions run as plain Python, where numpy has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saetools.kernels.backend import have_numba

HERE = Path(__file__).parent
TESTS = (
    "test_any_shape.py",
    "test_global_topk.py::test_any_shape",
    "test_global_topk.py::test_more_nans_than_places",
)


@pytest.mark.skipif(not have_numba(), reason="numba is not installed")
def test_no_kernel_reads_or_writes_beyond_its_arrays() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "numba or test_global_topk"]
    done = subprocess.run(
        [*command, *(str(HERE / test) for test in TESTS)],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
