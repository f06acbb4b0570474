"""Preallocated memory for kernels, and the allocator setting that programs may choose.

A fresh [N, F] tensor costs more in page faults than the ReLU that fills it: kernels take what they need from a
`Workspace` that lives as long as the training run.
"""

import ctypes
import math
import sys

import torch
from torch import Tensor


class Workspace:
    """Named buffers that are allocated once and handed out again; their content is undefined each time.

    A buffer grows when a larger shape is asked for. With `poison` each hand-out is filled with NaN (or the least
    integer), so that a test sees any read of unwritten memory.
    """

    def __init__(self, poison: bool = False) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._poison = poison

    def get(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A contiguous tensor of this shape; the same memory whenever the same name is asked for."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype or buffer.device != torch.device(device):
            with torch.inference_mode(False):  # what is made in inference mode could not be written to outside it
                buffer = self._buffers[name] = torch.empty(size, dtype=dtype, device=device)
        view = buffer[:size].view(shape)
        if self._poison:
            view.fill_(torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min)
        return view

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(b.numel() * b.element_size() for b in self._buffers.values())


def keep_freed_memory() -> str:
    """Tell glibc to keep freed memory instead of returning it to the system, and say what was done.

    For programs only (scripts call it; the library never does): mallopt(M_MMAP_THRESHOLD, 1 GiB) and
    mallopt(M_TRIM_THRESHOLD, 2 GiB - 1) for this process. Speeds plain torch steps 1.2-2.5 times.
    """
    if not sys.platform.startswith("linux"):
        return "default"
    libc = ctypes.CDLL(None)
    try:
        done = libc.mallopt(-3, 1 << 30) and libc.mallopt(-1, (1 << 31) - 1)
    except AttributeError:  # a C library without mallopt (musl)
        return "default"
    return "keep-freed" if done else "default"
