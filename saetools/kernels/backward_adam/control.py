"""What a step decides on the device: the gradient of b_dec and its update, the norm, whether the step is applied."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.backward_adam.problem import Rule

SPLITS = 64
"""Parts in which column sums over the rows of a batch are made."""
SAFE = 0.99
"""A bound below this share of the clip is below it, whatever rounding to bf16 did."""
LAGGED_BOUND = 1e7
"""With the lagged clip the norm is known after the update. Below this bound on loss and values it cannot overflow."""


@triton.jit
def _column_sums(
    row_ptr, weight_ptr, out_ptr, N, D, stride, per_split, BN: tl.constexpr, BD: tl.constexpr, WEIGHTED: tl.constexpr
):  # fmt: skip
    """Sums of some rows (of pull's first group), for BD columns; WEIGHTED: each times its weight."""
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    start = tl.program_id(0) * per_split
    total = tl.zeros([BN, BD], tl.float32)
    for n in range(start, tl.minimum(start + per_split, N), BN):
        rows = n + tl.arange(0, BN)
        there = (rows < N) & (rows < start + per_split)
        both = there[:, None] & (d < D)[None, :]
        part = tl.load(row_ptr + rows[:, None].to(tl.int64) * stride + d[None, :], mask=both, other=0.0).to(tl.float32)
        if WEIGHTED:
            part *= tl.load(weight_ptr + rows, mask=there, other=0.0)[:, None]
        total += part
    tl.store(out_ptr + tl.program_id(0) * D + d, tl.sum(total, axis=0), mask=d < D)


@triton.jit
def _b_dec_gradient(
    parts_ptr, n_parts, columns_ptr, n_columns, extra_ptr, control_ptr, out_ptr, scale, D,
    BN: tl.constexpr, BD: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """db_dec = -scale * sum of pull - db_enc W_enc (+ the other loss'), for BD columns, from partial sums."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    inside = d < D
    through_x = tl.zeros([BN, BD], tl.float32)
    for n in range(0, n_parts, BN):
        rows = n + tl.arange(0, BN)
        both = (rows < n_parts)[:, None] & inside[None, :]
        through_x += tl.load(parts_ptr + rows[:, None].to(tl.int64) * D + d[None, :], mask=both, other=0.0)
    direct = tl.zeros([BN, BD], tl.float32)
    for n in range(0, n_columns, BN):
        rows = n + tl.arange(0, BN)
        both = (rows < n_columns)[:, None] & inside[None, :]
        direct += tl.load(columns_ptr + rows[:, None].to(tl.int64) * D + d[None, :], mask=both, other=0.0)
    g = -tl.sum(through_x, axis=0) - scale * tl.sum(direct, axis=0)
    if EXTRA:
        g += tl.load(control_ptr + 6) * tl.load(extra_ptr + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + d, g, mask=inside)


@triton.jit
def _norm(part_ptr, n_parts, g_ptr, elsewhere, D, PARTS: tl.constexpr, BD: tl.constexpr):
    """The norm of all gradients, from parts of its square and the gradient of b_dec."""
    parts = tl.arange(0, PARTS)
    square = tl.sum(tl.load(part_ptr + parts, mask=parts < n_parts, other=0.0).to(tl.float64), axis=0)
    d = tl.arange(0, BD)
    g = tl.load(g_ptr + d, mask=d < D, other=0.0).to(tl.float64)
    return tl.sqrt(square + tl.sum(g * g, axis=0) + elsewhere).to(tl.float32)


@triton.jit
def _need(control_ptr, bound_ptr, n_parts, g_ptr, elsewhere, D, most, PARTS: tl.constexpr, BD: tl.constexpr):
    """Whether the norm is needed before the update: where its bound does not say that nothing is clipped."""
    bound = _norm(bound_ptr, n_parts, g_ptr, elsewhere, D, PARTS, BD)
    tl.store(control_ptr + 8, tl.where(bound <= most, 0.0, 1.0))  # NaN: needed


@triton.jit
def _decide(
    control_ptr, count_ptr, power_ptr, lr_ptr, loss_ptr, flag_ptr, norm_ptr, n_parts, g_ptr, elsewhere, clip_norm,
    n_lr, D, bound, PARTS: tl.constexpr, BD: tl.constexpr, LAGGED: tl.constexpr,
):  # fmt: skip
    """Before the update: whether it is applied, by what coefficient and how far."""
    loss = tl.load(loss_ptr)
    fine = (loss - loss == 0.0) & (tl.load(flag_ptr) == 0)
    if LAGGED:
        norm = tl.load(control_ptr + 4)
        fine = fine & (loss < bound) & (tl.load(control_ptr + 7) < bound)
    else:
        needed = tl.load(control_ptr + 8) != 0
        norm = tl.where(needed, _norm(norm_ptr, n_parts, g_ptr, elsewhere, D, PARTS, BD), 0.0)
        fine = fine & (norm - norm == 0.0)
    p1 = tl.load(power_ptr) * tl.load(power_ptr + 2)
    p2 = tl.load(power_ptr + 1) * tl.load(power_ptr + 3)
    lr = tl.load(lr_ptr + tl.load(count_ptr + 1) % n_lr).to(tl.float64)
    tl.store(control_ptr, fine.to(tl.float32))
    tl.store(control_ptr + 1, tl.where(norm > clip_norm, clip_norm / norm, 1.0))
    tl.store(control_ptr + 2, (lr / (1.0 - p1)).to(tl.float32))
    tl.store(control_ptr + 3, (1.0 / tl.sqrt(1.0 - p2)).to(tl.float32))
    tl.store(power_ptr, tl.where(fine, p1, tl.load(power_ptr)))
    tl.store(power_ptr + 1, tl.where(fine, p2, tl.load(power_ptr + 1)))
    tl.store(count_ptr, tl.load(count_ptr) + fine.to(tl.int64))
    tl.store(count_ptr + 1, tl.load(count_ptr + 1) + 1)


@triton.jit
def _finish(
    control_ptr, norm_ptr, n_parts, g_ptr, b_ptr, m_ptr, v_ptr, elsewhere, b1, b2, c1, c2, eps, D,
    PARTS: tl.constexpr, BD: tl.constexpr, LAGGED: tl.constexpr,
):  # fmt: skip
    """After the update of the features: the norm, and b_dec's update."""
    norm = _norm(norm_ptr, n_parts, g_ptr, elsewhere, D, PARTS, BD)
    tl.store(control_ptr + 5, norm)
    d = tl.arange(0, BD)
    inside = d < D
    update = inside & (tl.load(control_ptr + 0 * d) != 0)
    if LAGGED:
        tl.store(control_ptr + 4, tl.where(tl.load(control_ptr) != 0, norm, tl.load(control_ptr + 4)))
    g = tl.load(g_ptr + d, mask=inside, other=0.0) * tl.load(control_ptr + 1)
    m = b1 * tl.load(m_ptr + d, mask=inside, other=0.0) + c1 * g
    v = b2 * tl.load(v_ptr + d, mask=inside, other=0.0) + c2 * g * g
    step = tl.load(control_ptr + 2) * m / (tl.sqrt(v) * tl.load(control_ptr + 3) + eps)
    tl.store(m_ptr + d, m, mask=update)
    tl.store(v_ptr + d, v, mask=update)
    tl.store(b_ptr + d, tl.load(b_ptr + d, mask=inside, other=0.0) - step, mask=update)


@dataclass(frozen=True)
class Control:
    """What a step decides on the device, and what it decides by. A captured graph reads and writes it in place."""

    values: Tensor  # float32: as named below
    counts: Tensor  # int64: updates applied, batches seen
    powers: Tensor  # float64: b1^t, b2^t, b1, b2
    lr: Tensor  # float32: learning rates of the coming batches, a ring
    loss: Tensor  # float32: the weighted loss of this batch
    flag: Tensor  # int32: not 0 where a capacity or a bound did not hold in this batch

    APPLIED, CLIP, STEP, CORRECTION, LAST_NORM, NORM = range(6)
    EXTRA = 6  # the factor on extra rows
    LARGEST = 7  # value of the batch, by which the lagged clip refuses one
    NEEDED = 8  # whether the exact clip needs the norm before the update

    @staticmethod
    def make(rule: Rule, device: torch.device, n_ahead: int = 1) -> "Control":
        """Control before the rule's next update."""
        b1, b2 = rule.betas
        values = torch.tensor([0, 1, 0, 0, 0, 0, 1, 0, 1], dtype=torch.float32, device=device)
        powers = torch.tensor([b1**rule.n_steps, b2**rule.n_steps, b1, b2], dtype=torch.float64, device=device)
        counts = torch.tensor([rule.n_steps, 0], device=device)
        lr = torch.full((n_ahead,), rule.lr, dtype=torch.float32, device=device)
        zero = torch.zeros(1, dtype=torch.float32, device=device)
        return Control(values, counts, powers, lr, zero, zero.int())
