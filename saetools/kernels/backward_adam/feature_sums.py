"""What is known of each feature's gradients from its slots' numbers alone, without a row of x or of pull."""

import triton
import triton.language as tl


@triton.jit
def feature_slots(off_ptr, f, WIN: tl.constexpr):
    """Where a feature's sorted slots start and end, how many there are before its first whole window, where those after
    its last one start, and which windows are whole; without any, all slots are before."""
    start = tl.load(off_ptr + f)
    end = tl.load(off_ptr + f + 1)
    first_window = (start + WIN - 1) // WIN
    last_window = end // WIN
    split = first_window < last_window
    head = tl.where(split, first_window * WIN - start, end - start)
    tail = tl.where(split, last_window * WIN, end)
    return start, end, head, tail, first_window, last_window


@triton.jit
def slot_rows(slot, row_ptr, group_ptr, there, K: tl.constexpr, G: tl.constexpr):
    """The row of x and the row of pull, as [N * G, D], of slots."""
    if K > 0:
        row = slot // K
    else:
        row = tl.load(row_ptr + slot, mask=there, other=0).to(tl.int32)
    pull_row = row
    if G > 1:
        pull_row = row * G + tl.load(group_ptr + slot, mask=there, other=0).to(tl.int32)
    return row, pull_row


@triton.jit
def slot_sums(
    order_ptr, val_ptr, row_ptr, group_ptr, dot_ptr, x_norm_ptr, pull_square_ptr, start, end, scale, shrink,
    K: tl.constexpr, G: tl.constexpr, B: tl.constexpr, U: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """Of the sorted slots from start to end, at most U: sums of dvalue, of <-scale value pull, w>, and (BOUND) of
    |dvalue| ||x|| and of |scale value| ||pull||."""
    place = start + tl.arange(0, U)
    there = place < end
    slot = tl.load(order_ptr + place, mask=there, other=0)
    v = tl.load(val_ptr + slot, mask=there, other=0.0).to(tl.float32)
    dot = tl.load(dot_ptr + slot, mask=there, other=0.0).to(tl.float32)
    dvalue = shrink * v - scale * dot
    enc = 0.0
    dec = 0.0
    if BOUND:
        row, pull_row = slot_rows(slot, row_ptr, group_ptr, there, K, G)
        square = tl.zeros([U], tl.float32)
        for part in tl.static_range(B):
            square += tl.load(pull_square_ptr + pull_row * B + part, mask=there, other=0.0)
        enc = tl.sum(tl.abs(dvalue) * tl.load(x_norm_ptr + row, mask=there, other=0.0), axis=0)
        dec = tl.sum(tl.abs(scale * v) * tl.sqrt(square), axis=0)
    return tl.sum(dvalue, axis=0), -tl.sum(scale * v * dot, axis=0), enc, dec


@triton.jit
def _feature_sums(
    off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, dot_ptr, x_norm_ptr, pull_square_ptr, window_ptr,
    place_ptr, x_bias_ptr, x_along_ptr, x_enc_norm_ptr, x_dec_norm_ptr, control_ptr,
    own_ptr, bias_ptr, along_ptr, bound_ptr, scale, shrink, F,
    K: tl.constexpr, G: tl.constexpr, B: tl.constexpr, U: tl.constexpr, WIN: tl.constexpr, EXTRA: tl.constexpr,
    BOUND: tl.constexpr,
):  # fmt: skip
    """Of every n-th feature: db_enc without (own) and with extra rows, <dW_dec, w>; and (BOUND) a bound of the squared
    norm of all its gradients: ||sum of c_s row_s|| <= sum of |c_s| ||row_s||, and projecting makes nothing longer.
    The squared norm of a row of pull lies in B parts; whole windows have been summed."""
    pid = tl.program_id(0)
    lane = tl.arange(0, U)
    extra_scale = tl.load(control_ptr + 6)
    bound = 0.0
    for f in range(pid, F, tl.num_programs(0)):
        start, end, head, tail, first_window, last_window = feature_slots(off_ptr, f, WIN)
        own = 0.0
        along = 0.0
        enc = 0.0
        dec = 0.0
        for part in tl.static_range(2):
            stop = start + head if part == 0 else end
            for begin in range(start if part == 0 else tail, stop, U):
                own_1, along_1, enc_1, dec_1 = slot_sums(
                    order_ptr, val_ptr, row_ptr, group_ptr, dot_ptr, x_norm_ptr, pull_square_ptr, begin, stop, scale,
                    shrink, K, G, B, U, BOUND,
                )  # fmt: skip
                own += own_1
                along += along_1
                enc += enc_1
                dec += dec_1
        for window in range(first_window, last_window, U):
            there = window + lane < last_window
            sums = window_ptr + 4 * (window + lane)
            own += tl.sum(tl.load(sums, mask=there, other=0.0), axis=0)
            along += tl.sum(tl.load(sums + 1, mask=there, other=0.0), axis=0)
            enc += tl.sum(tl.load(sums + 2, mask=there, other=0.0), axis=0)
            dec += tl.sum(tl.load(sums + 3, mask=there, other=0.0), axis=0)
        bias = own
        if EXTRA:
            place = tl.load(place_ptr + f)
            bias += extra_scale * tl.load(x_bias_ptr + place, mask=place >= 0, other=0.0).to(tl.float32)
            along += extra_scale * tl.load(x_along_ptr + place, mask=place >= 0, other=0.0)
            if BOUND:
                enc += tl.abs(extra_scale) * tl.load(x_enc_norm_ptr + place, mask=place >= 0, other=0.0)
                dec += tl.abs(extra_scale) * tl.load(x_dec_norm_ptr + place, mask=place >= 0, other=0.0)
        tl.store(own_ptr + f, own)
        tl.store(bias_ptr + f, bias)
        tl.store(along_ptr + f, along)
        bound += enc * enc + dec * dec + bias * bias
    if BOUND:
        tl.store(bound_ptr + pid, bound)
