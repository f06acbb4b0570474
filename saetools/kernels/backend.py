"""Which implementation of a kernel runs: by device, by what is installed, or as the caller says.

`reference`  plain torch that a student can read; any dtype, any device.
`torch`      the fast path in stock torch operations.
`numba`      compiled loops on the CPU, float32 only; used by `auto` wherever numba is installed.
"""

import importlib.util
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "torch", "numba"]

_LOCK = threading.RLock()
"""Numba's thread pools may not be entered by two Python threads at once."""


@cache
def have_numba() -> bool:
    """Whether numba is installed; says so once where it is not."""
    found = importlib.util.find_spec("numba") is not None
    if not found:
        logging.getLogger(__name__).warning(
            "numba is not installed: kernels run on stock torch operations, exact but slower (pip install numba)"
        )
    return found


@contextmanager
def exclusive() -> Iterator[None]:
    """Where compiled kernels run: one Python thread at a time, on as many CPU threads as torch has.

    Torch's number of threads is the only one: `torch.set_num_threads` sets that of the kernels too. Their results do
    not depend on it.
    """
    import numba

    with _LOCK:
        n_threads, most = torch.get_num_threads(), int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        numba.set_num_threads(min(n_threads, most))
        if torch.get_num_threads() != n_threads:  # numba's pool has just been started, which sets OpenMP's number
            torch.set_num_threads(n_threads)
        yield


def resolve(impl: Impl, *tensors: Tensor) -> Literal["reference", "torch", "numba"]:
    """The implementation to run on these tensors.

    auto: numba for float32 on the CPU where it is installed, else stock torch. An explicit `numba` that cannot run
    raises ValueError: an override is never silently replaced.
    """
    suited = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    if impl == "auto":
        return "numba" if suited and have_numba() else "torch"
    if impl == "numba" and not (suited and have_numba()):
        got = ", ".join(sorted({f"{t.dtype} on {t.device.type}" for t in tensors}))
        raise ValueError(
            f"impl='numba' needs numba (installed: {have_numba()}) and float32 tensors on the CPU, got {got}; "
            "use impl='auto' or 'torch'"
        )
    if impl not in ("reference", "torch", "numba"):
        raise ValueError(f"impl is {impl!r}; known: auto, reference, torch, numba")
    return impl


@cache
def bf16_units() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (AMX or AVX512-BF16): several times faster than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
