"""Which implementation of a kernel runs: by device, by what is installed, or as the caller says.

`reference`  plain torch that a student can read; any dtype, any device.
`torch`      the fast path in stock torch operations.
`numba`      compiled loops on the CPU, float32 only; used by `auto` wherever numba is installed.
`triton`     kernels on a CUDA GPU of compute capability 8 or more, float32 and bf16; used by `auto` on such a GPU. With
             TRITON_INTERPRET=1 in the environment they also run on CPU tensors, slowly: for tests.
"""

import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "torch", "numba", "triton"]
Chosen = Literal["reference", "torch", "numba", "triton"]

P = ParamSpec("P")
R = TypeVar("R")


class _Pool:
    """Numba's threads: may not be entered by two Python threads at once, and do not live on in a forked process."""

    lock = threading.RLock()
    started = False
    lost = False

    @classmethod
    def after_fork(cls) -> None:
        """In the child: whoever held the lock is not here. GNU's OpenMP ends a child that enters the parent's pool."""
        cls.lock, cls.lost = threading.RLock(), cls.started


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_Pool.after_fork)


def operation(function: Callable[P, R]) -> Callable[P, R]:
    """A public operation: `torch.compile` calls it as it is, and compiles what stands around it.

    Traced into, numba's own compiler would be compiled, which ends in a RecursionError. The GPU of its tensors is the
    current one meanwhile: triton launches on that, wherever its pointers lead.
    """

    @wraps(function)
    def on_device(*args: P.args, **kwargs: P.kwargs) -> R:
        with _current(*args, *kwargs.values()):
            return function(*args, **kwargs)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:  # which takes a second to import
            return on_device(*args, **kwargs)
        return torch.compiler.disable(on_device, reason="kernels are compiled already")(*args, **kwargs)

    return call


def _current(*values: object) -> AbstractContextManager[object]:
    """Makes the device of the first tensor, itself or the first of a record, the current one, where that is a GPU."""
    for value in values:
        if is_dataclass(value):
            value = getattr(value, fields(value)[0].name)
        if isinstance(value, Tensor):
            return torch.cuda.device(value.device) if value.is_cuda else nullcontext()
    return nullcontext()


@cache
def have_numba() -> bool:
    """Whether numba is installed, and fits what is installed beside it; says so once where it does not."""
    why = None
    if importlib.util.find_spec("numba") is None:
        why = "numba is not installed"
    else:
        try:
            importlib.import_module("numba")
        except (ImportError, OSError) as error:  # it refuses a numpy that is too new for it
            why = f"numba cannot be imported ({error})"
    if why is not None:
        logging.getLogger(__name__).warning(
            "%s: kernels run on stock torch operations, exact but slower (pip install --upgrade numba)", why
        )
    return why is None


def numba_runs() -> bool:
    """Whether compiled kernels run in this process; says once why not."""
    if _Pool.lost:
        _say_lost()
    return have_numba() and not _Pool.lost


@cache
def _say_lost() -> None:
    logging.getLogger(__name__).warning(
        "this process was forked from one that had run compiled kernels, whose threads it does not have: kernels run "
        "on stock torch operations, exact but slower. Start it by spawn to have them."
    )


@contextmanager
def exclusive() -> Iterator[None]:
    """Where compiled kernels run: one Python thread at a time, on as many CPU threads as torch has.

    Torch's number of threads is the only one: `torch.set_num_threads` sets that of the kernels too. Their results do
    not depend on it.
    """
    import numba

    with _Pool.lock:
        _Pool.started = True
        n_threads, most = torch.get_num_threads(), int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        numba.set_num_threads(min(n_threads, most))
        if torch.get_num_threads() != n_threads:  # numba's pool has just been started, which sets OpenMP's number
            torch.set_num_threads(n_threads)
        yield


@cache
def have_triton(device_type: str, index: int | None) -> bool:
    """Whether Triton kernels run there (a CUDA GPU of capability 8 or more, or the interpreter); says once why not."""
    if device_type != "cuda":
        return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
    why = None
    if importlib.util.find_spec("triton") is None:
        why = "triton is not installed"
    elif (capability := torch.cuda.get_device_capability(index)) < (8, 0):
        why = f"the GPU has compute capability {capability[0]}.{capability[1]}, Triton kernels need 8.0"
    if why is not None:
        logging.getLogger(__name__).warning("%s: kernels run on stock torch operations, exact but slower", why)
    return why is None


def resolve(impl: Impl, *tensors: Tensor, triton: bool = True, any_dtype: bool = False) -> Chosen:
    """The implementation to run on these tensors.

    auto: triton on a GPU that has it, numba for float32 on the CPU where it is installed, else stock torch. An explicit
    `numba` or `triton` that cannot run raises ValueError: an override is never silently replaced. `triton=False`: this
    operation, with these settings, has no Triton kernel. `any_dtype=True`: numba takes it in every dtype, as bytes.
    """
    if impl not in ("auto", "reference", "torch", "numba", "triton"):
        raise ValueError(f"impl is {impl!r}; known: auto, reference, torch, numba, triton")
    dtypes = {t.dtype for t in tensors}
    devices = {t.device for t in tensors}
    on_gpu = all(d.type == "cuda" for d in devices)
    suits_numba = all(d.type == "cpu" for d in devices) and (any_dtype or dtypes <= {torch.float32})
    suits_triton = triton and len(devices) == 1 and dtypes <= {torch.float32, torch.bfloat16}
    if impl == "auto":
        if on_gpu and suits_triton and _triton_there(devices):
            return "triton"
        return "numba" if suits_numba and numba_runs() else "torch"
    got = ", ".join(sorted({f"{t.dtype} on {t.device.type}" for t in tensors}))
    if impl == "numba" and not (suits_numba and numba_runs()):
        raise ValueError(
            f"impl='numba' needs numba (installed: {have_numba()}) in a process that was not forked from one which ran "
            f"it, and float32 tensors on the CPU, got {got}; use impl='auto' or 'torch'"
        )
    if impl == "triton" and not (suits_triton and _triton_there(devices)):
        raise ValueError(
            f"impl='triton' needs {'triton and float32 or bf16 tensors on one GPU' if triton else 'other settings'}, "
            f"got {got}; use impl='auto' or 'torch'"
        )
    return impl


def check_shapes(x_ND: Tensor, W_FD: Tensor, b_F: Tensor) -> None:
    """ValueError unless rows, matrix and bias fit: compiled loops would read beyond the shorter ones."""
    if x_ND.ndim != 2 or W_FD.ndim != 2 or x_ND.shape[1] != W_FD.shape[1] or b_F.shape != W_FD.shape[:1]:
        shapes = [tuple(t.shape) for t in (x_ND, W_FD, b_F)]
        raise ValueError("x [N, D] {}, W [F, D] {} and b [F] {} do not fit each other".format(*shapes))


def _triton_there(devices: set[torch.device]) -> bool:
    return all(have_triton(d.type, d.index) for d in devices)


@cache
def bf16_units() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (AMX or AVX512-BF16): several times faster than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
