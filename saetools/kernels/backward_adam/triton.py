"""The way back on the GPU: per feature, both weight gradients are gathered and applied where they are.

Slots are sorted by feature, stably, so that sums have one order. A program walks a feature's slots: dW_dec += value
pull, dvalue = -scale <pull, w>, dW_enc += dvalue x; then projection, Adam on both rows, unit norm, bf16 copies. With
the dots known the columns of a row are independent, but for the norm at the end: programs are one warp wide and many.
Neither dvalues nor gradients exist in memory. A feature that fires often would keep one program busy for long: of the
sorted slots every whole window of `WINDOW` that lies inside one feature is summed beforehand by programs of its own,
and its sums are added in order. Floating-point atomics there are none.

What a step decides lies on the device (`Control`): whether the update is applied, the clip coefficient, the step size.
With the exact clip the gather runs twice, first for the norm alone; with the lagged one the last step's norm is used.
Source: the identity for b_dec is that of openai/sparse_autoencoder; the rest is our own.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.backward_adam.problem import Batch, ExtraRows, Rule, Weights
from saetools.kernels.triton_parts import milliseconds, n_processors, next_power, stochastic_bf16
from saetools.kernels.workspace import Workspace

WINDOW = 128
"""Slots of one feature that one program sums; the static number of windows bounds the memory for their sums."""
SPLITS = 64
"""Parts in which column sums over rows are made."""


@triton.jit
def _gather(
    order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, start, head, tail, n, scale, shrink, D, d,
    inside, K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of n slots, the first `head` of them from `start`, the others from `tail`: dW_dec and dW_enc in the columns d (if
    WIDE), db_enc, and <dW_dec, w>."""
    g_dec = tl.zeros([BD], tl.float32)
    g_enc = tl.zeros([BD], tl.float32)
    g_bias = 0.0
    along = 0.0
    for done in range(0, n, U):
        j = done + tl.arange(0, U)
        there = j < n
        place = tl.where(j < head, start + j, tail + j - head)
        slot = tl.load(order_ptr + place, mask=there, other=0)
        v = tl.load(val_ptr + slot, mask=there, other=0.0).to(tl.float32)
        dot = tl.load(dot_ptr + slot, mask=there, other=0.0).to(tl.float32)
        dvalue = shrink * v - scale * dot
        g_bias += tl.sum(dvalue, axis=0)
        along -= tl.sum(scale * v * dot, axis=0)
        if WIDE:
            if K > 0:
                row = (slot // K).to(tl.int64)
            else:
                row = tl.load(row_ptr + slot, mask=there, other=0).to(tl.int64)
            pull_row = row
            if G > 1:
                pull_row = row * G + tl.load(group_ptr + slot, mask=there, other=0).to(tl.int64)
            both = there[:, None] & inside[None, :]
            pull = tl.load(
                pull_ptr + pull_row[:, None] * D + d[None, :], mask=both, other=0.0, eviction_policy="evict_last"
            ).to(tl.float32)
            x = tl.load(x_ptr + row[:, None] * D + d[None, :], mask=both, other=0.0, eviction_policy="evict_last").to(
                tl.float32
            )
            g_dec -= tl.sum((scale * v)[:, None] * pull, axis=0)
            g_enc += tl.sum(dvalue[:, None] * x, axis=0)
    return g_dec, g_enc, g_bias, along


@triton.jit
def _windows(
    key_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr, scalar_ptr, scale, shrink, F, D,
    K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIN: tl.constexpr,
):  # fmt: skip
    """The sums of a window of sorted slots that lies inside one feature; other windows are left alone."""
    window = tl.program_id(0)
    start = window * WIN
    f = tl.load(key_ptr + start)
    if (f == tl.load(key_ptr + start + WIN - 1)) & (f < F):
        d = tl.program_id(1) * BD + tl.arange(0, BD)
        inside = d < D
        g_dec, g_enc, g_bias, along = _gather(
            order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, start, WIN, start, WIN, scale, shrink, D,
            d, inside, K, G, U, BD, True,
        )  # fmt: skip
        out = sum_ptr + tl.cast(window, tl.int64) * 2 * D + d
        tl.store(out, g_dec, mask=inside)
        tl.store(out + D, g_enc, mask=inside)
        tl.store(scalar_ptr + 2 * window, g_bias)
        tl.store(scalar_ptr + 2 * window + 1, along)


@triton.jit
def _gradient(
    f, off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr, scalar_ptr,
    place_ptr, x_enc_ptr, x_dec_ptr, x_bias_ptr, x_along_ptr, extra_scale, scale, shrink, D, d, inside,
    K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIN: tl.constexpr, EXTRA: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """dW_dec and dW_enc of a feature in the columns d; db_enc without and with extra rows; <dW_dec, w>; n of slots."""
    start = tl.load(off_ptr + f)
    end = tl.load(off_ptr + f + 1)
    first_window = (start + WIN - 1) // WIN
    last_window = end // WIN
    split = first_window < last_window
    head = tl.where(split, first_window * WIN - start, end - start)
    tail = tl.where(split, last_window * WIN, end)
    g_dec, g_enc, g_bias, along = _gather(
        order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, start, head, tail, head + end - tail, scale,
        shrink, D, d, inside, K, G, U, BD, WIDE,
    )  # fmt: skip
    for window in range(first_window, last_window):
        if WIDE:
            sums = sum_ptr + tl.cast(window, tl.int64) * 2 * D + d
            g_dec += tl.load(sums, mask=inside, other=0.0)
            g_enc += tl.load(sums + D, mask=inside, other=0.0)
        g_bias += tl.load(scalar_ptr + 2 * window)
        along += tl.load(scalar_ptr + 2 * window + 1)
    own_bias = g_bias
    if EXTRA:
        place = tl.load(place_ptr + f).to(tl.int64)
        helped = inside & (tl.load(place_ptr + f + 0 * d) >= 0)
        if WIDE:
            g_enc += extra_scale * tl.load(x_enc_ptr + place * D + d, mask=helped, other=0.0).to(tl.float32)
            g_dec += extra_scale * tl.load(x_dec_ptr + place * D + d, mask=helped, other=0.0).to(tl.float32)
        g_bias += extra_scale * tl.load(x_bias_ptr + place, mask=place >= 0, other=0.0).to(tl.float32)
        along += extra_scale * tl.load(x_along_ptr + place, mask=place >= 0, other=0.0).to(tl.float32)
    return g_dec, g_enc, own_bias, g_bias, along, end - start


@triton.jit
def _measure(
    off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr, scalar_ptr,
    place_ptr, x_enc_ptr, x_dec_ptr, x_bias_ptr, x_along_ptr, enc_ptr, control_ptr, norm_ptr, b_dec_ptr,
    out_enc_ptr, out_dec_ptr, out_bias_ptr, scale, shrink, F, D,
    K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIN: tl.constexpr, EXTRA: tl.constexpr,
    NORM: tl.constexpr, EMIT: tl.constexpr,
):  # fmt: skip
    """For every n-th feature and some columns: the squared norm of the projected gradient (if NORM), db_enc W_enc, and
    (if EMIT) the gradient itself. Atoms have unit norm: ||g - <g, w> w||^2 = ||g||^2 - <g, w>^2."""
    pid = tl.program_id(0)
    chunk = tl.program_id(1)
    d = chunk * BD + tl.arange(0, BD)
    inside = d < D
    squares = tl.zeros([BD], tl.float32)
    single = 0.0
    b_dec = tl.zeros([BD], tl.float32)
    extra_scale = tl.load(control_ptr + 6)
    for f in range(pid, F, tl.num_programs(0)):
        g_dec, g_enc, own_bias, g_bias, along, _ = _gradient(
            f, off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr, scalar_ptr,
            place_ptr, x_enc_ptr, x_dec_ptr, x_bias_ptr, x_along_ptr, extra_scale, scale, shrink, D, d, inside,
            K, G, U, BD, WIN, EXTRA, NORM,
        )  # fmt: skip
        at = tl.cast(f, tl.int64) * D + d
        b_dec -= own_bias * tl.load(enc_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += g_dec * g_dec + g_enc * g_enc
            single += g_bias * g_bias - along * along
        if EMIT:
            tl.store(out_dec_ptr + at, g_dec, mask=inside)
            tl.store(out_enc_ptr + at, g_enc, mask=inside)
            tl.store(out_bias_ptr + f, g_bias)
    if NORM:
        square = tl.sum(squares, axis=0)
        square = tl.where(chunk == 0, square + single, square)
        tl.store(norm_ptr + pid * tl.num_programs(1) + chunk, square)
    tl.store(b_dec_ptr + tl.cast(pid, tl.int64) * D + d, b_dec, mask=inside)


@triton.jit
def _adam(
    p, m, v, m_ptr, v_ptr, at, update, g, noise_m, noise_v, b1, b2, c1, c2, step, correction, eps, NOISE: tl.constexpr
):  # fmt: skip
    """p after Adam's step from moments m and v; the new moments are stored."""
    m = b1 * m.to(tl.float32) + c1 * g
    v = b2 * v.to(tl.float32) + c2 * g * g
    if NOISE:
        tl.store(m_ptr + at, stochastic_bf16(m, noise_m), mask=update, eviction_policy="evict_first")
        tl.store(v_ptr + at, stochastic_bf16(v, noise_v), mask=update, eviction_policy="evict_first")
    else:
        tl.store(m_ptr + at, m, mask=update, eviction_policy="evict_first")
        tl.store(v_ptr + at, v, mask=update, eviction_policy="evict_first")
    return p - step * m / (tl.sqrt(v) * correction + eps)


@triton.jit
def _update(
    off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr, scalar_ptr,
    place_ptr, x_enc_ptr, x_dec_ptr, x_bias_ptr, x_along_ptr,
    dec_ptr, enc_ptr, bias_ptr, m_dec_ptr, v_dec_ptr, m_enc_ptr, v_enc_ptr, m_bias_ptr, v_bias_ptr,
    low_dec_ptr, low_enc_ptr, since_ptr, control_ptr, count_ptr, norm_ptr, dead_ptr,
    scale, shrink, b1, b2, c1, c2, eps, N, F, D, dead_after, tiny,
    K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIN: tl.constexpr, EXTRA: tl.constexpr,
    NORM: tl.constexpr, LOW: tl.constexpr, COUNT: tl.constexpr, NOISE: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Adam on both rows of every n-th feature, unit norm, bf16 copies, counters; NORM: the gradient's norm too."""
    pid = tl.program_id(0)
    lane = tl.arange(0, BD)
    squares = tl.zeros([BD], tl.float32)
    single = 0.0
    n_dead = 0
    applied = tl.load(control_ptr) != 0
    live = tl.load(control_ptr + 0 * lane) != 0
    clip = tl.load(control_ptr + 1)
    step = tl.load(control_ptr + 2)
    correction = tl.load(control_ptr + 3)
    extra_scale = tl.load(control_ptr + 6)
    seed = tl.load(count_ptr).to(tl.int32)
    for f in range(pid, F, tl.num_programs(0)):
        length = tl.zeros([BD], tl.float32)
        for c in range(CHUNKS):
            d = c * BD + lane
            inside = d < D
            update = inside & live
            at = tl.cast(f, tl.int64) * D + d
            # what streams through is asked for before the gather, and leaves the cache to the rows that are gathered
            w = tl.load(dec_ptr + at, mask=inside, other=0.0)
            m_dec = tl.load(m_dec_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
            v_dec = tl.load(v_dec_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
            e = tl.load(enc_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
            m_enc = tl.load(m_enc_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
            v_enc = tl.load(v_enc_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
            g_dec, g_enc, _, g_bias, along, n_slots = _gradient(
                f, off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr, scalar_ptr,
                place_ptr, x_enc_ptr, x_dec_ptr, x_bias_ptr, x_along_ptr, extra_scale, scale, shrink, D, d, inside,
                K, G, U, BD, WIN, EXTRA, True,
            )  # fmt: skip
            g_dec -= along * w
            if NORM:
                squares += g_dec * g_dec + g_enc * g_enc
            n1, n2, n3, n4 = d, d, d, d
            if NOISE:
                n1, n2, n3, n4 = tl.randint4x(seed, tl.cast(f, tl.int32) * (CHUNKS * BD) + d)
            w = _adam(
                w, m_dec, v_dec, m_dec_ptr, v_dec_ptr, at, update, g_dec * clip, n1, n2, b1, b2, c1, c2, step,
                correction, eps, NOISE,
            )  # fmt: skip
            tl.store(dec_ptr + at, w, mask=update)
            e = _adam(
                e, m_enc, v_enc, m_enc_ptr, v_enc_ptr, at, update, g_enc * clip, n3, n4, b1, b2, c1, c2, step,
                correction, eps, NOISE,
            )  # fmt: skip
            tl.store(enc_ptr + at, e, mask=update, eviction_policy="evict_first")
            if LOW:
                tl.store(low_enc_ptr + at, e.to(tl.bfloat16), mask=update, eviction_policy="evict_first")
            length += tl.where(inside, w * w, 0.0)
            if c == 0:
                single += g_bias * g_bias
                b = _adam(
                    tl.load(bias_ptr + f), tl.load(m_bias_ptr + f), tl.load(v_bias_ptr + f), m_bias_ptr, v_bias_ptr, f,
                    applied, g_bias * clip, 0, 0, b1, b2, c1, c2, step, correction, eps, False,
                )  # fmt: skip
                tl.store(bias_ptr + f, b, mask=applied)
                if COUNT:
                    before = tl.load(since_ptr + f)
                    since = tl.where(applied, tl.where(n_slots > 0, 0, before + N), before)
                    tl.store(since_ptr + f, since)
                    n_dead += (since >= dead_after).to(tl.int32)
        length_1 = tl.maximum(tl.sqrt(tl.sum(length, axis=0)), tiny)
        for c in range(CHUNKS):
            d = c * BD + lane
            update = (d < D) & live
            at = tl.cast(f, tl.int64) * D + d
            w = tl.load(dec_ptr + at, mask=update, other=0.0) / length_1
            tl.store(dec_ptr + at, w, mask=update, eviction_policy="evict_first")
            if LOW:
                tl.store(low_dec_ptr + at, w.to(tl.bfloat16), mask=update, eviction_policy="evict_first")
    if NORM:
        tl.store(norm_ptr + pid, tl.sum(squares, axis=0) + single)
    if COUNT:
        tl.store(dead_ptr + pid, n_dead)


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
class Sorted:
    """Slots in feature order: keys ascending (F: not in use), their slots, and where each feature's begin."""

    keys_M: Tensor  # int32
    order_M: Tensor  # int32
    offsets_F1: Tensor  # int32; the last is the number of slots in use


@triton.jit
def _rank_atomically(key_ptr, count_ptr, rank_ptr, M, BLOCK: tl.constexpr):
    """Counts of each key, and some rank of each slot among its equals."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(key_ptr + m, mask=m < M, other=0)
    rank = tl.atomic_add(count_ptr + key, 1, mask=m < M)
    tl.store(rank_ptr + m, rank, mask=m < M)


@triton.jit
def _place(key_ptr, rank_ptr, end_ptr, count_ptr, loose_ptr, sorted_ptr, M, BLOCK: tl.constexpr):
    """Slots by key, in any order among equals; the keys in order."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(key_ptr + m, mask=m < M, other=0)
    start = tl.load(end_ptr + key, mask=m < M, other=0) - tl.load(count_ptr + key, mask=m < M, other=0)
    place = start + tl.load(rank_ptr + m, mask=m < M, other=0)
    tl.store(loose_ptr + place, m, mask=m < M)
    tl.store(sorted_ptr + place, key, mask=m < M)


@triton.jit
def _settle(sorted_ptr, loose_ptr, end_ptr, count_ptr, order_ptr, M, F, BLOCK: tl.constexpr):
    """Among equals, slots ascending: each goes as far from the start as there are lower ones. Keys F need no order."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(loose_ptr + p, mask=p < M, other=0)
    key = tl.load(sorted_ptr + p, mask=p < M, other=F)
    n = tl.where(key < F, tl.load(count_ptr + key, mask=p < M, other=0), 0)
    start = tl.load(end_ptr + key, mask=p < M, other=0) - n
    lower = tl.zeros([BLOCK], tl.int32)
    for j in range(tl.max(n, axis=0)):
        other = tl.load(loose_ptr + start + j, mask=j < n, other=2147483647)
        lower += (other < slot).to(tl.int32)
    tl.store(order_ptr + tl.where(key < F, start + lower, p), slot, mask=p < M)


def sort_slots(keys_M: Tensor, n_features: int, workspace: Workspace | None = None) -> Sorted:
    """A counting sort, stable, by integer atomics whose order does not reach the result; no synchronisation.

    Three passes over the slots instead of a radix sort's many. The last one's work is the sum of squared counts, at
    most slots x rows. Slots with key n_features come last, in no certain order.
    """
    get, device, M = (workspace or Workspace()).get, keys_M.device, len(keys_M)
    counts = get("sort.counts", (n_features + 1,), torch.int32, device).zero_()
    rank, loose, keys, order = (
        get(f"sort.{name}", (M,), torch.int32, device) for name in ("rank", "loose", "keys", "order")
    )
    offsets = get("sort.offsets", (n_features + 2,), torch.int32, device)
    if M == 0:
        return Sorted(keys, order, offsets[: n_features + 1].zero_())
    block = 256
    grid = (triton.cdiv(M, block),)
    _rank_atomically[grid](keys_M, counts, rank, M, BLOCK=block)
    offsets[:1].zero_()
    torch.cumsum(counts, dim=0, dtype=torch.int32, out=offsets[1:])
    _place[grid](keys_M, rank, offsets[1:], counts, loose, keys, M, BLOCK=block)
    _settle[grid](keys, loose, offsets[1:], counts, order, M, n_features, BLOCK=block)
    return Sorted(keys, order, offsets[: n_features + 1])


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


@dataclass(frozen=True)
class Extra:
    """Gradient rows of another loss, on the device: row place_F[f] of each tensor is feature f's; -1: none."""

    place_F: Tensor  # int32
    W_enc_AD: Tensor
    W_dec_AD: Tensor
    b_enc_A: Tensor
    b_dec_D: Tensor
    along_A: Tensor  # <row of W_dec_AD, atom> for each


@dataclass(frozen=True)
class Problem:
    """All tensors of the way back. `low`: bf16 copies of (W_enc, W_dec) that the forward pass reads."""

    weights: Weights
    first: Weights
    second: Weights
    x_ND: Tensor
    pull_NGD: Tensor
    values_M: Tensor
    dots_M: Tensor  # <pull, atom> of each slot
    k: int  # slots of each row; 0: rows_M says
    scale: float
    rows_M: Tensor | None = None
    group_M: Tensor | None = None
    shrink: float = 0.0
    low: tuple[Tensor, Tensor] | None = None
    extra: Extra | None = None
    since_F: Tensor | None = None  # int64, tokens since each feature fired
    dead_after: int = 0
    workspace: Workspace = field(default_factory=Workspace)


@dataclass(frozen=True)
class Tile:
    """How a feature kernel is launched: columns at a time, warps, slots gathered at once, programs (per columns)."""

    columns: int
    warps: int
    slots: int
    n_programs: int
    registers: int | None = None  # at most so many per thread


def tiles(n_features: int, d_model: int, device: torch.device) -> tuple[Tile, Tile]:
    """For measuring and for updating, unless they are measured: the best on an H200 of `gpu_suite.py --tune`."""
    n = n_processors(device)
    wide = d_model > 1024
    columns = min(512 if wide else 256, max(16, next_power(d_model)))
    n_measuring = max(1, 24 * n // triton.cdiv(d_model, columns))  # as many as are resident: each leaves a row of sums
    measuring = Tile(columns, 1, 4 if wide else 2, min(n_features, n_measuring))
    return measuring, Tile(min(256, max(16, next_power(d_model))), 1, 2, min(n_features, 64 * n))


def other_tiles(n_features: int, d_model: int, device: torch.device) -> tuple[list[Tile], list[Tile]]:
    """What else is worth a try, for measuring and for updating."""
    n = n_processors(device)
    measuring = [
        Tile(columns, 1, slots, min(n_features, max(1, 24 * n // triton.cdiv(d_model, columns))))
        for columns, slots in ((256, 2), (512, 4))
    ]
    updating = [
        Tile(columns, warps, slots, min(n_features, 64 * n), registers)
        for columns, warps, slots, registers in (
            (256, 1, 2, None),
            (256, 1, 2, 96),
            (512, 2, 2, None),
            (512, 2, 4, None),
        )
    ]
    return measuring, updating


_TILES: dict[tuple[Any, ...], tuple[Tile, Tile]] = {}
"""The best tiles by shape, once measured."""


class Backward:
    """The kernels of one way back over fixed tensors; every method launches work and none waits for it."""

    def __init__(self, problem: Problem, control: Control, rule: Rule, shapes: tuple[Tile, Tile] | None = None) -> None:
        self.p, self.control, self.rule = problem, control, rule
        self.F, self.D = problem.weights.W_enc_FD.shape
        device = problem.x_ND.device
        self._key = (self.F, self.D, problem.k, problem.x_ND.dtype, problem.first.W_enc_FD.dtype, device)
        self.n_norms = 0  # parts of the norm that were last written
        get = problem.workspace.get
        n_windows = max(1, len(problem.values_M) // WINDOW)
        self.window_sums = get("back.windows", (n_windows, 2, self.D), torch.float32, device)
        self.window_scalars = get("back.scalars", (n_windows, 2), torch.float32, device)
        self.columns = get("back.columns", (SPLITS, self.D), torch.float32, device)
        self.g_b_dec = get("back.g_b_dec", (self.D,), torch.float32, device)
        self.use(*(shapes or _TILES.get(self._key) or tiles(self.F, self.D, device)))

    def use(self, measuring: Tile, updating: Tile) -> None:
        """Launch by these tiles from now on."""
        self.measuring, self.updating = measuring, updating
        get, device = self.p.workspace.get, self.p.x_ND.device
        n_parts = max(measuring.n_programs * self._n_blocks(measuring), updating.n_programs)
        self.norm_parts = get("back.norm", (n_parts,), torch.float32, device)
        self.b_dec_parts = get("back.b_dec", (measuring.n_programs, self.D), torch.float32, device)
        self.dead_parts = get("back.dead", (updating.n_programs,), torch.int32, device)

    def choose_tiles(self, slots: Sorted) -> None:
        """Measure which tiles are fastest at this shape, once per shape. Weights and moments change: restore them."""
        if self._key not in _TILES:
            self.control.values[Control.APPLIED] = 1
            measuring, updating = other_tiles(self.F, self.D, self.p.x_ND.device)

            def measured(tile: Tile) -> float:
                self.use(tile, self.updating)
                return milliseconds(lambda: self.measure(slots, norm=True))

            def updated(tile: Tile) -> float:
                self.use(self.measuring, tile)
                return milliseconds(lambda: self.update(slots))

            _TILES[self._key] = min(measuring, key=measured), min(updating, key=updated)
        self.use(*_TILES[self._key])

    def _slots(self, slots: Sorted) -> tuple[Tensor, ...]:
        p, none = self.p, self.p.values_M
        rows = none if p.rows_M is None else p.rows_M
        groups = none if p.group_M is None else p.group_M
        return slots.order_M, p.values_M, rows, groups, p.pull_NGD, p.x_ND, p.dots_M

    def _extra(self) -> tuple[Tensor, ...]:
        e = self.p.extra
        if e is None:
            return (self.p.values_M,) * 5
        return e.place_F, e.W_enc_AD, e.W_dec_AD, e.b_enc_A, e.along_A

    def _n_blocks(self, tile: Tile) -> int:
        return triton.cdiv(self.D, tile.columns)

    def _constants(self, tile: Tile) -> dict[str, int]:
        sizes = {"K": self.p.k, "G": self.p.pull_NGD.shape[1], "U": tile.slots, "BD": tile.columns, "WIN": WINDOW}
        return sizes | {"num_warps": tile.warps} | ({"maxnreg": tile.registers} if tile.registers else {})

    def windows(self, slots: Sorted) -> None:
        """Sums of the whole windows inside one feature."""
        n = len(self.p.values_M) // WINDOW
        if n:
            _windows[(n, self._n_blocks(self.measuring))](
                slots.keys_M, *self._slots(slots), self.window_sums, self.window_scalars, self.p.scale, self.p.shrink,
                self.F, self.D, **self._constants(self.measuring),
            )  # fmt: skip

    def measure(self, slots: Sorted, *, norm: bool, emit: Weights | None = None) -> None:
        """What b_dec's gradient takes from the encoder, and (`norm`) the norm of all gradients; `emit`: write them."""
        p, none = self.p, self.p.values_M
        enc = p.weights.W_enc_FD if p.low is None else p.low[0]  # half the bytes
        out = (none,) * 3 if emit is None else (emit.W_enc_FD, emit.W_dec_FD, emit.b_enc_F)
        _measure[(self.measuring.n_programs, self._n_blocks(self.measuring))](
            slots.offsets_F1, *self._slots(slots), self.window_sums, self.window_scalars, *self._extra(), enc,
            self.control.values, self.norm_parts, self.b_dec_parts, *out, p.scale, p.shrink, self.F, self.D,
            EXTRA=p.extra is not None, NORM=norm or emit is not None, EMIT=emit is not None,
            **self._constants(self.measuring),
        )  # fmt: skip
        if norm:
            self.n_norms = self.measuring.n_programs * self._n_blocks(self.measuring)

    def update(self, slots: Sorted, *, norm: bool = False, count: bool = True) -> None:
        """Adam on all features; `norm`: the norm of their gradients too."""
        p, c, w, none = self.p, self.control, self.p.weights, self.p.values_M
        b1, b2 = self.rule.betas
        low = p.low or (none, none)
        _update[(self.updating.n_programs,)](
            slots.offsets_F1, *self._slots(slots), self.window_sums, self.window_scalars, *self._extra(),
            w.W_dec_FD, w.W_enc_FD, w.b_enc_F, p.first.W_dec_FD, p.second.W_dec_FD, p.first.W_enc_FD,
            p.second.W_enc_FD, p.first.b_enc_F, p.second.b_enc_F, low[1], low[0],
            none if p.since_F is None else p.since_F, c.values, c.counts, self.norm_parts, self.dead_parts,
            p.scale, p.shrink, b1, b2, 1 - b1, 1 - b2, self.rule.eps, len(p.x_ND), self.F, self.D, p.dead_after,
            torch.finfo(torch.float32).tiny, EXTRA=p.extra is not None, NORM=norm, LOW=p.low is not None,
            COUNT=count and p.since_F is not None, NOISE=p.first.W_enc_FD.dtype == torch.bfloat16,
            CHUNKS=self._n_blocks(self.updating), **self._constants(self.updating),
        )  # fmt: skip
        if norm:
            self.n_norms = self.updating.n_programs

    def column_sums(self) -> None:
        """Sums of pull over rows, in parts."""
        N, G, D = self.p.pull_NGD.shape
        per_split = triton.cdiv(max(N, 1), SPLITS)
        block = min(128, self.measuring.columns)
        _column_sums[(SPLITS, triton.cdiv(D, block))](
            self.p.pull_NGD, self.columns, N, D, G * D, per_split, BN=min(16, next_power(per_split)), BD=block
        )

    def b_dec_gradient(self) -> None:
        """The gradient of b_dec, after `measure` and `column_sums`."""
        block, extra = min(64, self.measuring.columns), self.p.extra
        _b_dec_gradient[(triton.cdiv(self.D, block),)](
            self.b_dec_parts, len(self.b_dec_parts), self.columns, SPLITS,
            self.g_b_dec if extra is None else extra.b_dec_D, self.control.values, self.g_b_dec, self.p.scale, self.D,
            BN=32, BD=block, EXTRA=extra is not None,
        )  # fmt: skip

    def decide(self, *, lagged: bool, before: bool) -> None:
        """exact: norm, decision and b_dec's update; lagged: the decision before the update, the rest after it."""
        p, c, rule = self.p, self.control, self.rule
        b1, b2 = rule.betas
        _decide[(1,)](
            c.values, c.counts, c.powers, c.lr, c.loss, c.flag, self.norm_parts, self.n_norms, self.g_b_dec,
            p.weights.b_dec_D, p.first.b_dec_D, p.second.b_dec_D, rule.clip_norm, b1, b2, 1 - b1, 1 - b2, rule.eps,
            len(c.lr), self.D, LAGGED_BOUND, PARTS=next_power(len(self.norm_parts)), BD=max(16, next_power(self.D)),
            NORM=not (lagged and before), DECIDE=before, LAGGED=lagged, num_warps=16,
        )  # fmt: skip

    def run(self, slots: Sorted, *, lagged: bool = False) -> None:
        """The whole way back, after `column_sums`: one launch after the other."""
        self.windows(slots)
        self.measure(slots, norm=not lagged)
        self.b_dec_gradient()
        self.decide(lagged=lagged, before=True)
        self.update(slots, norm=lagged)
        if lagged:
            self.decide(lagged=True, before=False)


LAGGED_BOUND = 1e7
"""With the lagged clip the norm is known after the update. Below this bound on loss and values it cannot overflow."""


def problem_of(
    weights: Weights, first: Weights, second: Weights, batch: Batch, extra: ExtraRows | None, workspace: Workspace
) -> tuple[Problem, Sorted]:
    """The public operation's arguments as the kernels take them."""
    F, device, code = len(weights.W_enc_FD), batch.x_ND.device, batch.code
    keys_M = torch.where(code.values_M != 0, code.indices_M, F).int()
    rows = None
    if extra is not None:
        place_F = torch.full((F,), -1, dtype=torch.int32, device=device)
        place_F[extra.features_A] = torch.arange(len(extra.features_A), dtype=torch.int32, device=device)
        along_A = (extra.W_dec_AD * weights.W_dec_FD[extra.features_A]).sum(1)
        rows = Extra(place_F, extra.W_enc_AD, extra.W_dec_AD, extra.b_enc_A, extra.b_dec_D, along_A)
    problem = Problem(
        *(weights, first, second, batch.x_ND.contiguous(), batch.pull_NGD.contiguous()),
        *(code.values_M, batch.dots_M, 0, batch.scale),
        rows_M=code.rows(),
        group_M=batch.groups(),
        shrink=batch.shrink,
        extra=rows,
        workspace=workspace,
    )
    return problem, sort_slots(keys_M, F)


def backward_adam(
    weights: Weights,
    first: Weights,
    second: Weights,
    batch: Batch,
    rule: Rule,
    extra: ExtraRows | None,
    workspace: Workspace,
) -> float:
    """As the reference."""
    problem, slots = problem_of(weights, first, second, batch, extra, workspace)
    control = Control.make(rule, batch.x_ND.device)
    back = Backward(problem, control, rule)
    back.column_sums()
    back.run(slots)
    return float(control.values[Control.NORM])


def gradients(weights: Weights, batch: Batch, extra: ExtraRows | None, workspace: Workspace) -> Weights:
    """The gradient of each parameter, neither projected nor clipped."""
    problem, slots = problem_of(weights, weights, weights, batch, extra, workspace)
    back = Backward(problem, Control.make(Rule(0.0, 0), batch.x_ND.device), Rule(0.0, 0))
    out = Weights(*(torch.empty_like(w) for w in weights))
    back.column_sums()
    back.windows(slots)
    back.measure(slots, norm=False, emit=out)
    back.b_dec_gradient()
    out.b_dec_D.copy_(back.g_b_dec)
    return out
