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
        i = tl.load(idx_ptr + s + u, mask=s + u < end, other=0).to(tl.int64)  # beside the values, not after them
        w = tl.load(w_ptr + i[:, None] * D + d[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        total += tl.sum(v[:, None] * w.to(tl.float32), axis=0)
    tl.store(out_ptr + row * D + d, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gather_dot(
    idx_ptr, row_ptr, g_ptr, w_ptr, bias_ptr, val_ptr, out_ptr, M, D,
    K: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, BIASED: tl.constexpr, USED: tl.constexpr,
):  # fmt: skip
    """<g[row], W[index]> (+ bias[index]) of S slots, a warp each; USED: 0 where the slot's value is 0."""
    slot = tl.program_id(0).to(tl.int64) * S + tl.arange(0, S)
    there = slot < M
    i = tl.load(idx_ptr + slot, mask=there, other=0).to(tl.int64)  # beside the value, not after it
    if USED:
        there = there & (tl.load(val_ptr + slot, mask=there, other=0.0) != 0)
    if K > 0:
        row = slot // K
    else:
        row = tl.load(row_ptr + slot, mask=there, other=0).to(tl.int64)
    products = tl.zeros([S, BLOCK], tl.float32)
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        both = there[:, None] & (d < D)[None, :]
        g = tl.load(g_ptr + row[:, None] * D + d[None, :], mask=both, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + i[:, None] * D + d[None, :], mask=both, other=0.0).to(tl.float32)
        products += g * w
    dot = tl.sum(products, axis=1)
    if BIASED:
        dot += tl.load(bias_ptr + i, mask=there, other=0.0)
    tl.store(out_ptr + slot, dot.to(out_ptr.dtype.element_ty), mask=slot < M)


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


def gather_dot(
    indices_M: Tensor,
    rows_M: Tensor | int,
    g_ND: Tensor,
    W_FD: Tensor,
    bias_F: Tensor | None = None,
    used_M: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """dots_M: <g[row], W[index]> (+ bias[index]) of each slot. rows_M may be the number of slots of each row; used_M:
    values, 0 where the result is to be 0."""
    M, D = len(indices_M), W_FD.shape[1]
    dots_M = torch.empty(M, dtype=g_ND.dtype, device=g_ND.device) if out is None else out
    if M:
        per_row, rows = (rows_M, indices_M) if isinstance(rows_M, int) else (0, rows_M)
        slots = 8
        _gather_dot[(triton.cdiv(M, slots),)](
            indices_M, rows, g_ND, W_FD, W_FD if bias_F is None else bias_F, indices_M if used_M is None else used_M,
            dots_M, M, D, K=per_row, S=slots, BLOCK=min(256, max(16, next_power(D))), BIASED=bias_F is not None,
            USED=used_M is not None, num_warps=slots,
        )  # fmt: skip
    return dots_M
