"""What a step decides on the device: the gradient of b_dec and its update, the norm, whether the step is applied."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.backward_adam.problem import Rule

SPLITS = 64
"""Parts in which column sums over rows are made."""
LAGGED_BOUND = 1e7
"""With the lagged clip the norm is known after the update. Below this bound on loss and values it cannot overflow."""


@triton.jit
def _column_sums(pull_ptr, out_ptr, N, D, stride, per_split, BN: tl.constexpr, BD: tl.constexpr):
    """Sums of some rows of pull's first group, for BD columns."""
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    start = tl.program_id(0) * per_split
    total = tl.zeros([BN, BD], tl.float32)
    for n in range(start, tl.minimum(start + per_split, N), BN):
        rows = n + tl.arange(0, BN)
        both = ((rows < N) & (rows < start + per_split))[:, None] & (d < D)[None, :]
        total += tl.load(pull_ptr + rows[:, None].to(tl.int64) * stride + d[None, :], mask=both, other=0.0).to(
            tl.float32
        )
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
    g = tl.sum(through_x, axis=0) - scale * tl.sum(direct, axis=0)
    if EXTRA:
        g += tl.load(control_ptr + 6) * tl.load(extra_ptr + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + d, g, mask=inside)


@triton.jit
def _decide(
    control_ptr, count_ptr, power_ptr, lr_ptr, loss_ptr, flag_ptr, norm_ptr, n_parts, g_ptr, b_ptr, m_ptr, v_ptr,
    clip_norm, b1, b2, c1, c2, eps, n_lr, D, bound,
    PARTS: tl.constexpr, BD: tl.constexpr, NORM: tl.constexpr, DECIDE: tl.constexpr, LAGGED: tl.constexpr,
):  # fmt: skip
    """Norm, whether the step is applied, its size; and where the gradient of b_dec is known, b_dec's update."""
    loss = tl.load(loss_ptr)
    if NORM:
        parts = tl.arange(0, PARTS)
        square = tl.sum(tl.load(norm_ptr + parts, mask=parts < n_parts, other=0.0).to(tl.float64), axis=0)
        d = tl.arange(0, BD)
        inside = d < D
        g = tl.load(g_ptr + d, mask=inside, other=0.0)
        square += tl.sum(g.to(tl.float64) * g.to(tl.float64), axis=0)
        norm = tl.sqrt(square).to(tl.float32)
        tl.store(control_ptr + 5, norm)
    if DECIDE:
        fine = (loss - loss == 0.0) & (tl.load(flag_ptr) == 0)
        if LAGGED:
            reference = tl.load(control_ptr + 4)
            fine = fine & (loss < bound) & (tl.load(control_ptr + 7) < bound)
        else:
            reference = norm
            fine = fine & (norm - norm == 0.0)
        coefficient = clip_norm / tl.maximum(reference, clip_norm)
        p1 = tl.load(power_ptr) * tl.load(power_ptr + 2)
        p2 = tl.load(power_ptr + 1) * tl.load(power_ptr + 3)
        lr = tl.load(lr_ptr + tl.load(count_ptr + 1) % n_lr).to(tl.float64)
        tl.store(control_ptr, fine.to(tl.float32))
        tl.store(control_ptr + 1, coefficient)
        tl.store(control_ptr + 2, (lr / (1.0 - p1)).to(tl.float32))
        tl.store(control_ptr + 3, (1.0 / tl.sqrt(1.0 - p2)).to(tl.float32))
        tl.store(power_ptr, tl.where(fine, p1, tl.load(power_ptr)))
        tl.store(power_ptr + 1, tl.where(fine, p2, tl.load(power_ptr + 1)))
        tl.store(count_ptr, tl.load(count_ptr) + fine.to(tl.int64))
        tl.store(count_ptr + 1, tl.load(count_ptr + 1) + 1)
        tl.debug_barrier()
    if NORM:
        applied = tl.load(control_ptr) != 0
        update = inside & (tl.load(control_ptr + 0 * d) != 0)
        if LAGGED:
            tl.store(control_ptr + 4, tl.where(applied, norm, tl.load(control_ptr + 4)))
        coefficient = tl.load(control_ptr + 1)
        step_size = tl.load(control_ptr + 2)
        correction = tl.load(control_ptr + 3)
        g *= coefficient
        m = b1 * tl.load(m_ptr + d, mask=inside, other=0.0) + c1 * g
        v = b2 * tl.load(v_ptr + d, mask=inside, other=0.0) + c2 * g * g
        b = tl.load(b_ptr + d, mask=inside, other=0.0) - step_size * m / (tl.sqrt(v) * correction + eps)
        tl.store(m_ptr + d, m, mask=update)
        tl.store(v_ptr + d, v, mask=update)
        tl.store(b_ptr + d, b, mask=update)


@dataclass(frozen=True)
class Control:
    """What a step decides on the device, and what it decides by. A captured graph reads and writes it in place."""

    values: Tensor  # float32: applied, clip coefficient, step size, correction, last norm, norm, extra scale, largest
    counts: Tensor  # int64: updates applied, batches seen
    powers: Tensor  # float64: b1^t, b2^t, b1, b2
    lr: Tensor  # float32: learning rates of the coming batches, a ring
    loss: Tensor  # float32: the weighted loss of this batch
    flag: Tensor  # int32: not 0 where a capacity or a bound did not hold in this batch

    APPLIED, CLIP, STEP, CORRECTION, LAST_NORM, NORM, EXTRA, LARGEST = range(8)

    @staticmethod
    def make(rule: Rule, device: torch.device, n_ahead: int = 1) -> "Control":
        """Control before the rule's next update."""
        b1, b2 = rule.betas
        values = torch.tensor([0, 1, 0, 0, 0, 0, 1, 0], dtype=torch.float32, device=device)
        powers = torch.tensor([b1**rule.n_steps, b2**rule.n_steps, b1, b2], dtype=torch.float64, device=device)
        counts = torch.tensor([rule.n_steps, 0], device=device)
        lr = torch.full((n_ahead,), rule.lr, device=device)
        zero = torch.zeros(1, device=device)
        return Control(values, counts, powers, lr, zero, zero.int())
