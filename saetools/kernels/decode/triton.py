"""Gather-sum and gather-dot on the GPU, in float32 sums."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.triton_parts import next_power


@triton.jit
def _gather_sum(
    val_ptr, idx_ptr, off_ptr, w_ptr, out_ptr, D, BLOCK: tl.constexpr, UNROLL: tl.constexpr
):  # fmt: skip
    """sum over a row's slots of value * W[index], for BLOCK columns."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    total = tl.zeros([BLOCK], tl.float32)
    u = tl.arange(0, UNROLL)
    start, end = tl.load(off_ptr + row), tl.load(off_ptr + row + 1)
    for s in range(start, end, UNROLL):
        v = tl.load(val_ptr + s + u, mask=s + u < end, other=0.0).to(tl.float32)
        used = v != 0.0
        i = tl.load(idx_ptr + s + u, mask=used, other=0).to(tl.int64)
        w = tl.load(w_ptr + i[:, None] * D + d[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        total += tl.sum(v[:, None] * w.to(tl.float32), axis=0)
    tl.store(out_ptr + row * D + d, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gather_dot(idx_ptr, row_ptr, g_ptr, w_ptr, bias_ptr, out_ptr, D, WIDTH: tl.constexpr, BIASED: tl.constexpr):
    """<g[row], W[index]> (+ bias[index]) of one slot."""
    slot = tl.program_id(0).to(tl.int64)
    i = tl.load(idx_ptr + slot).to(tl.int64)
    row = tl.load(row_ptr + slot).to(tl.int64)
    d = tl.arange(0, WIDTH)
    g = tl.load(g_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + i * D + d, mask=d < D, other=0.0).to(tl.float32)
    dot = tl.sum(g * w, axis=0)
    if BIASED:
        dot += tl.load(bias_ptr + i)
    tl.store(out_ptr + slot, dot.to(out_ptr.dtype.element_ty))


def gather_sum(values_M: Tensor, indices_M: Tensor, offsets_N1: Tensor, W_FD: Tensor) -> Tensor:
    """out_ND: sum over the slots of each row of value * W[index]."""
    N, D = len(offsets_N1) - 1, W_FD.shape[1]
    out_ND = torch.empty(N, D, dtype=W_FD.dtype, device=W_FD.device)
    if N == 0 or len(values_M) == 0:
        return out_ND.zero_()
    block = max(16, min(512, next_power(D)))
    _gather_sum[(N, triton.cdiv(D, block))](
        values_M, indices_M, offsets_N1, W_FD, out_ND, D, BLOCK=block, UNROLL=8, num_warps=max(1, block // 256)
    )
    return out_ND


def gather_dot(indices_M: Tensor, rows_M: Tensor, g_ND: Tensor, W_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """dots_M: <g[row], W[index]> (+ bias[index]) of each slot."""
    M, D = len(indices_M), W_FD.shape[1]
    dots_M = torch.empty(M, dtype=g_ND.dtype, device=g_ND.device)
    if M:
        width = max(16, next_power(D))
        _gather_dot[(M,)](
            indices_M, rows_M, g_ND, W_FD, W_FD if bias_F is None else bias_F, dots_M, D,
            WIDTH=width, BIASED=bias_F is not None, num_warps=max(1, min(8, width // 256)),
        )  # fmt: skip
    return dots_M
