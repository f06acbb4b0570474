"""What `triton.py` launches per feature: gradients gathered from sorted slots, their norm, Adam where they are."""

import triton
import triton.language as tl

from saetools.kernels.backward_adam.feature_sums import feature_slots, slot_rows, slot_sums
from saetools.kernels.triton_parts import stochastic_bf16


@triton.jit
def _gather(
    order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, start, head, tail, n, scale, shrink, D, d,
    inside, K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dW_dec and dW_enc in the columns d, of n slots: the first `head` of them from `start`, the others from `tail`."""
    g_dec = tl.zeros([BD], tl.float32)
    g_enc = tl.zeros([BD], tl.float32)
    for done in range(0, n, U):
        for u in tl.static_range(U):
            j = done + u
            there = j < n
            slot = tl.load(order_ptr + tl.where(j < head, start + j, tail + j - head), mask=there, other=0)
            v = tl.load(val_ptr + slot, mask=there, other=0.0).to(tl.float32)
            dot = tl.load(dot_ptr + slot, mask=there, other=0.0).to(tl.float32)
            row, pull_row = slot_rows(slot, row_ptr, group_ptr, there, K, G)
            both = inside & (j + 0 * d < n)
            pull = tl.load(pull_ptr + pull_row.to(tl.int64) * D + d, mask=both, other=0.0, eviction_policy="evict_last")
            x = tl.load(x_ptr + row.to(tl.int64) * D + d, mask=both, other=0.0, eviction_policy="evict_last")
            g_dec -= scale * v * pull.to(tl.float32)
            g_enc += (shrink * v - scale * dot) * x.to(tl.float32)
    return g_dec, g_enc


@triton.jit
def _windows(
    key_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, x_norm_ptr, pull_square_ptr, sum_ptr,
    slot_sum_ptr, scale, shrink, F, D,
    K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIN: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The sums of a window of sorted slots that lies inside one feature; other windows are left alone."""
    window = tl.program_id(0)
    start = window * WIN
    f = tl.load(key_ptr + start)
    if (f == tl.load(key_ptr + start + WIN - 1)) & (f < F):
        d = tl.program_id(1) * BD + tl.arange(0, BD)
        inside = d < D
        g_dec, g_enc = _gather(
            order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, start, WIN, start, WIN, scale, shrink, D,
            d, inside, K, G, U, BD,
        )  # fmt: skip
        out = sum_ptr + tl.cast(window, tl.int64) * 2 * D + d
        tl.store(out, g_dec, mask=inside)
        tl.store(out + D, g_enc, mask=inside)
        if tl.program_id(1) == 0:
            own, along, enc, dec = slot_sums(
                order_ptr, val_ptr, row_ptr, group_ptr, dot_ptr, x_norm_ptr, pull_square_ptr, start, start + WIN,
                scale, shrink, K, G, B, WIN, True,
            )  # fmt: skip
            tl.store(slot_sum_ptr + 4 * window, own)
            tl.store(slot_sum_ptr + 4 * window + 1, along)
            tl.store(slot_sum_ptr + 4 * window + 2, enc)
            tl.store(slot_sum_ptr + 4 * window + 3, dec)


@triton.jit
def _gradient(
    f, off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr,
    place, x_enc_ptr, x_dec_ptr, extra_scale, scale, shrink, D, d, inside,
    K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIN: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """dW_dec and dW_enc of a feature in the columns d."""
    start, end, head, tail, first_window, last_window = feature_slots(off_ptr, f, WIN)
    g_dec, g_enc = _gather(
        order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, start, head, tail, head + end - tail, scale,
        shrink, D, d, inside, K, G, U, BD,
    )  # fmt: skip
    for window in range(first_window, last_window):
        sums = sum_ptr + tl.cast(window, tl.int64) * 2 * D + d
        g_dec += tl.load(sums, mask=inside, other=0.0)
        g_enc += tl.load(sums + D, mask=inside, other=0.0)
    if EXTRA:
        helped = d < tl.where(place >= 0, D, 0)
        at = tl.cast(place, tl.int64) * D + d
        g_enc += extra_scale * tl.load(x_enc_ptr + at, mask=helped, other=0.0).to(tl.float32)
        g_dec += extra_scale * tl.load(x_dec_ptr + at, mask=helped, other=0.0).to(tl.float32)
    return g_dec, g_enc


@triton.jit
def _measure(
    off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr,
    place_ptr, x_enc_ptr, x_dec_ptr, control_ptr, bias_ptr, along_ptr, norm_ptr, out_enc_ptr, out_dec_ptr,
    scale, shrink, F, D,
    K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIN: tl.constexpr, EXTRA: tl.constexpr,
    EMIT: tl.constexpr,
):  # fmt: skip
    """For every n-th feature and some columns: the squared norm of the projected gradient, where it is needed, and
    (EMIT) the gradient itself. Atoms have unit norm: ||g - <g, w> w||^2 = ||g||^2 - <g, w>^2."""
    pid = tl.program_id(0)
    chunk = tl.program_id(1)
    d = chunk * BD + tl.arange(0, BD)
    inside = d < D
    squares = tl.zeros([BD], tl.float32)
    single = 0.0
    extra_scale = tl.load(control_ptr + 6)
    n = F
    if not EMIT:
        n = tl.where(tl.load(control_ptr + 8) != 0, F, 0)
    for f in range(pid, n, tl.num_programs(0)):
        place = tl.load(place_ptr + f) if EXTRA else -1
        g_dec, g_enc = _gradient(
            f, off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr,
            place, x_enc_ptr, x_dec_ptr, extra_scale, scale, shrink, D, d, inside, K, G, U, BD, WIN, EXTRA,
        )  # fmt: skip
        bias = tl.load(bias_ptr + f)
        along = tl.load(along_ptr + f)
        squares += g_dec * g_dec + g_enc * g_enc
        single += bias * bias - along * along
        if EMIT:
            at = tl.cast(f, tl.int64) * D + d
            tl.store(out_dec_ptr + at, g_dec, mask=inside)
            tl.store(out_enc_ptr + at, g_enc, mask=inside)
    square = tl.sum(squares, axis=0)
    square = tl.where(chunk == 0, square + single, square)
    tl.store(norm_ptr + pid * tl.num_programs(1) + chunk, square)


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
def _update_columns(
    f, c, limit, off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr,
    place, x_enc_ptr, x_dec_ptr, dec_ptr, enc_ptr, m_dec_ptr, v_dec_ptr, m_enc_ptr, v_enc_ptr, low_enc_ptr,
    along, extra_scale, clip, step, correction, seed, scale, shrink, b1, b2, c1, c2, eps, D,
    K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIN: tl.constexpr, EXTRA: tl.constexpr,
    LOW: tl.constexpr, NOISE: tl.constexpr, CHUNKS: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Adam on the c-th columns of a feature's two rows. The encoder's are stored; the atom's, which have no norm yet,
    are given back, with the squared gradients."""
    d = c * BD + tl.arange(0, BD)
    inside = d < D
    update = d < limit
    at = tl.cast(f, tl.int64) * D + d
    # what streams through is asked for before the gather, and leaves the cache to the rows that are gathered
    w = tl.load(dec_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first" if HELD else "")
    m_dec = tl.load(m_dec_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
    v_dec = tl.load(v_dec_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
    e = tl.load(enc_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
    m_enc = tl.load(m_enc_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
    v_enc = tl.load(v_enc_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
    g_dec, g_enc = _gradient(
        f, off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr,
        place, x_enc_ptr, x_dec_ptr, extra_scale, scale, shrink, D, d, inside, K, G, U, BD, WIN, EXTRA,
    )  # fmt: skip
    g_dec -= along * w
    squares = g_dec * g_dec + g_enc * g_enc
    n1, n2, n3, n4 = d, d, d, d
    if NOISE:
        n1, n2, n3, n4 = tl.randint4x(seed, tl.cast(f, tl.int32) * (CHUNKS * BD) + d)
    w = _adam(
        w, m_dec, v_dec, m_dec_ptr, v_dec_ptr, at, update, g_dec * clip, n1, n2, b1, b2, c1, c2, step,
        correction, eps, NOISE,
    )  # fmt: skip
    e = _adam(
        e, m_enc, v_enc, m_enc_ptr, v_enc_ptr, at, update, g_enc * clip, n3, n4, b1, b2, c1, c2, step,
        correction, eps, NOISE,
    )  # fmt: skip
    tl.store(enc_ptr + at, e, mask=update, eviction_policy="evict_first")
    if LOW:
        tl.store(low_enc_ptr + at, e.to(tl.bfloat16), mask=update, eviction_policy="evict_first")
    return tl.where(inside, w, 0.0), squares


@triton.jit
def _folded(v, BD: tl.constexpr):
    """Sums of every 4 of v, which lie in one thread: a total over them takes fewer registers."""
    return tl.sum(tl.reshape(v, [BD // 4, 4]), axis=1)


@triton.jit
def _store_atom(w, dec_ptr, low_dec_ptr, at, update, LOW: tl.constexpr):
    tl.store(dec_ptr + at, w, mask=update, eviction_policy="evict_first")
    if LOW:
        tl.store(low_dec_ptr + at, w.to(tl.bfloat16), mask=update, eviction_policy="evict_first")


@triton.jit
def _update(
    off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr,
    place_ptr, x_enc_ptr, x_dec_ptr, g_bias_ptr, along_ptr,
    dec_ptr, enc_ptr, bias_ptr, m_dec_ptr, v_dec_ptr, m_enc_ptr, v_enc_ptr, m_bias_ptr, v_bias_ptr,
    low_dec_ptr, low_enc_ptr, since_ptr, control_ptr, count_ptr, norm_ptr, dead_ptr,
    scale, shrink, b1, b2, c1, c2, eps, N, F, D, dead_after, tiny,
    K: tl.constexpr, G: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, WIN: tl.constexpr, EXTRA: tl.constexpr,
    LOW: tl.constexpr, COUNT: tl.constexpr, NOISE: tl.constexpr, CHUNKS: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Adam on both rows of every n-th feature, unit norm, bf16 copies, counters, and the gradients' squared norm. A new
    atom stays in registers until its norm is known (HELD), or is stored, read and divided."""
    pid = tl.program_id(0)
    lane = tl.arange(0, BD)
    squares = tl.zeros([BD // 4], tl.float32)
    single = 0.0
    n_dead = 0
    applied = tl.load(control_ptr) != 0
    limit = tl.where(applied, D, 0)  # one number: with a mask that was loaded for each lane stores are 4 bytes wide
    clip = tl.load(control_ptr + 1)
    step = tl.load(control_ptr + 2)
    correction = tl.load(control_ptr + 3)
    extra_scale = tl.load(control_ptr + 6)
    seed = tl.load(count_ptr).to(tl.int32)
    for f in range(pid, F, tl.num_programs(0)):
        row = tl.cast(f, tl.int64) * D
        length = tl.zeros([BD // 4], tl.float32)
        along = tl.load(along_ptr + f)
        place = tl.load(place_ptr + f) if EXTRA else -1
        held = ()  # unrolled, or no element of it would stay in a register
        for c in tl.static_range(CHUNKS if HELD else 0):
            w, square = _update_columns(
                f, c, limit, off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr,
                place, x_enc_ptr, x_dec_ptr, dec_ptr, enc_ptr, m_dec_ptr, v_dec_ptr, m_enc_ptr, v_enc_ptr,
                low_enc_ptr, along, extra_scale, clip, step, correction, seed, scale, shrink, b1, b2, c1, c2, eps, D,
                K, G, U, BD, WIN, EXTRA, LOW, NOISE, CHUNKS, HELD,
            )  # fmt: skip
            squares += _folded(square, BD)
            length += _folded(w * w, BD)
            held = held + (w,)  # type: ignore[assignment]
        for c in range(0 if HELD else CHUNKS):
            w, square = _update_columns(
                f, c, limit, off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, pull_ptr, x_ptr, dot_ptr, sum_ptr,
                place, x_enc_ptr, x_dec_ptr, dec_ptr, enc_ptr, m_dec_ptr, v_dec_ptr, m_enc_ptr, v_enc_ptr,
                low_enc_ptr, along, extra_scale, clip, step, correction, seed, scale, shrink, b1, b2, c1, c2, eps, D,
                K, G, U, BD, WIN, EXTRA, LOW, NOISE, CHUNKS, HELD,
            )  # fmt: skip
            squares += _folded(square, BD)
            length += _folded(w * w, BD)
            d = c * BD + lane
            tl.store(dec_ptr + row + d, w, mask=d < limit)
        if not HELD:
            tl.debug_barrier()  # where bf16 and float32 rows lie in different lanes, one reads what another has stored
        length_1 = tl.maximum(tl.sqrt(tl.sum(length, axis=0)), tiny)
        for c in tl.static_range(CHUNKS if HELD else 0):
            d = c * BD + lane
            _store_atom(held[c] / length_1, dec_ptr, low_dec_ptr, row + d, d < limit, LOW)
        for c in range(0 if HELD else CHUNKS):
            d = c * BD + lane
            update = d < limit
            w = tl.load(dec_ptr + row + d, mask=update, other=0.0)
            _store_atom(w / length_1, dec_ptr, low_dec_ptr, row + d, update, LOW)
        g_bias = tl.load(g_bias_ptr + f)
        single += g_bias * g_bias
        b = _adam(
            tl.load(bias_ptr + f), tl.load(m_bias_ptr + f), tl.load(v_bias_ptr + f), m_bias_ptr, v_bias_ptr, f,
            applied, g_bias * clip, 0, 0, b1, b2, c1, c2, step, correction, eps, False,
        )  # fmt: skip
        tl.store(bias_ptr + f, b, mask=applied)
        if COUNT:
            fires = tl.load(off_ptr + f + 1) > tl.load(off_ptr + f)
            before = tl.load(since_ptr + f)
            since = tl.where(applied, tl.where(fires, 0, before + N), before)
            tl.store(since_ptr + f, since)
            n_dead += (since >= dead_after).to(tl.int32)
    tl.store(norm_ptr + pid, tl.sum(squares, axis=0) + single)
    if COUNT:
        tl.store(dead_ptr + pid, n_dead)
