"""Decorators of the numba kernels: imported by `cpu.py` files alone, so numba is needed only where it runs.

`fastmath=True` would let the compiler assume that there are no NaNs, and guards against them would pass vacuously;
only the flags that reorder and contract sums are given. Loops are split over threads in fixed blocks of rows or
features, so no floating-point sum depends on scheduling or on the number of threads.
"""

from typing import Any

import numba
from numba import prange

FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

parallel: Any = numba.njit(parallel=True, fastmath=FASTMATH, cache=True, error_model="numpy", nogil=True)
serial: Any = numba.njit(fastmath=FASTMATH, cache=True, error_model="numpy", nogil=True)
inline: Any = numba.njit(fastmath=FASTMATH, error_model="numpy", inline="never")

__all__ = ["inline", "parallel", "prange", "serial"]
