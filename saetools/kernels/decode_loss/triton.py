"""Decode, loss and residuals on the GPU: one program per row and block of columns gathers the rows of W in use.

Atoms may be bf16 copies of float32 weights: half the bytes. Sums are in float32, in the order of slots, so results do
not depend on scheduling.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.decode.triton import gather_dot
from saetools.kernels.triton_parts import next_power, row_slots
from saetools.kernels.workspace import Workspace


@triton.jit
def _decode_loss(
    x_ptr, val_ptr, idx_ptr, off_ptr, group_ptr, w_ptr, b_ptr, weight_ptr, pull_ptr, loss_ptr, D, n_blocks, first,
    K: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Residuals of all groups for one row and BLOCK columns; loss per row, group and block. K = 0: a ragged code."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    left = tl.load(x_ptr + row * D + d, mask=inside, other=0.0).to(tl.float32)
    left -= tl.load(b_ptr + d, mask=inside, other=0.0).to(tl.float32)
    start, end = row_slots(off_ptr, row, K)
    u = tl.arange(0, UNROLL)
    for g in tl.static_range(G):
        for s in range(start, end, UNROLL):
            v = tl.load(val_ptr + s + u, mask=s + u < end, other=0.0).to(tl.float32)
            if G > 1:
                own = tl.load(group_ptr + s + u, mask=s + u < end, other=0)
                v = tl.where(own == g, v, 0.0)
            used = v != 0.0
            i = tl.load(idx_ptr + s + u, mask=s + u < end, other=0).to(tl.int64) - first  # beside the values
            w = tl.load(w_ptr + i[:, None] * D + d[None, :], mask=used[:, None] & inside[None, :], other=0.0)
            left -= tl.sum(v[:, None] * w.to(tl.float32), axis=0)
        tl.store(loss_ptr + (row * G + g) * n_blocks + tl.program_id(1), tl.sum(left * left, axis=0))
        pulled = left * tl.load(weight_ptr + g)
        tl.store(pull_ptr + (row * G + g) * D + d, pulled.to(pull_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sum_later_groups(pull_ptr, D, G: tl.constexpr, BLOCK: tl.constexpr):
    """pull[g] = sum of weight * residual over the groups from g on, in place."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    later = tl.zeros([BLOCK], tl.float32)
    for back in tl.static_range(G):
        place = pull_ptr + (row * G + (G - 1 - back)) * D + d
        later += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.store(place, later.to(pull_ptr.dtype.element_ty), mask=inside)


def block_columns(d_model: int) -> int:
    """Columns of one program: 256 a warp, so that each thread loads 16 bytes of bf16."""
    return max(16, min(512, next_power(d_model)))


def decode_loss_into(
    x_ND: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets_N1: Tensor | None,
    W_FD: Tensor,
    b_D: Tensor,
    group_M: Tensor | None,
    weights_G: Tensor,
    out: tuple[Tensor, Tensor],
    first: int = 0,
) -> None:
    """Write pull_NGD and loss_NGB (partial sums over blocks of columns). values may be [N, K] or ragged [M]."""
    pull_NGD, loss_NGB = out
    N, G, D = pull_NGD.shape
    if N == 0:
        return
    block = block_columns(D)
    grid = (N, triton.cdiv(D, block))
    K = values.shape[1] if offsets_N1 is None else 0
    unroll = 8 if K == 0 else min(8, next_power(K))
    _decode_loss[grid](
        x_ND, values, indices, indices if offsets_N1 is None else offsets_N1, indices if group_M is None else group_M,
        W_FD, b_D, weights_G, pull_NGD, loss_NGB, D, grid[1], first,
        K=K, G=G, BLOCK=block, UNROLL=unroll, num_warps=max(1, block // 256),
    )  # fmt: skip
    if G > 1:
        _sum_later_groups[grid](pull_NGD, D, G=G, BLOCK=block, num_warps=max(1, block // 256))


def n_blocks(d_model: int) -> int:
    """Partial losses per row."""
    return triton.cdiv(d_model, block_columns(d_model))


def decode_loss(
    x_ND: Tensor,
    values_M: Tensor,
    indices_M: Tensor,
    offsets_N1: Tensor,
    rows_M: Tensor,
    W_FD: Tensor,
    b_D: Tensor,
    group_M: Tensor,
    weights_G: Tensor,
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    (N, D), G = x_ND.shape, len(weights_G)
    pull_NGD = workspace.get("decode.pull", (N, G, D), x_ND.dtype, x_ND.device)
    loss_NGB = torch.empty(N, G, n_blocks(D), dtype=torch.float32, device=x_ND.device)
    out = (pull_NGD, loss_NGB)
    decode_loss_into(x_ND, values_M, indices_M, offsets_N1, W_FD, b_D, group_M, weights_G, out)
    pull_rows = rows_M * G + group_M.long()
    dots_M = gather_dot(indices_M, pull_rows, pull_NGD.view(-1, D), W_FD)
    return loss_NGB.sum(2).to(x_ND.dtype), pull_NGD, torch.where(values_M != 0, dots_M, 0)
