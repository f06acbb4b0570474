"""What is known of each feature's gradients from its slots' numbers alone, without a row of x or of pull."""

import triton
import triton.language as tl


@triton.jit
def _feature_sums(
    off_ptr, order_ptr, val_ptr, row_ptr, group_ptr, dot_ptr, x_norm_ptr, pull_square_ptr,
    place_ptr, x_bias_ptr, x_along_ptr, x_enc_norm_ptr, x_dec_norm_ptr, control_ptr,
    own_ptr, bias_ptr, along_ptr, bound_ptr, scale, shrink, F,
    K: tl.constexpr, G: tl.constexpr, B: tl.constexpr, U: tl.constexpr, EXTRA: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """Of every n-th feature: db_enc without (own) and with extra rows, <dW_dec, w>; and (BOUND) a bound of the squared
    norm of all its gradients: ||sum of c_s row_s|| <= sum of |c_s| ||row_s||, and projecting makes nothing longer.
    The squared norm of a row of pull lies in B parts."""
    pid = tl.program_id(0)
    lane = tl.arange(0, U)
    extra_scale = tl.load(control_ptr + 6)
    bound = 0.0
    for f in range(pid, F, tl.num_programs(0)):
        own_U = tl.zeros([U], tl.float32)
        along_U = tl.zeros([U], tl.float32)
        enc_U = tl.zeros([U], tl.float32)
        dec_U = tl.zeros([U], tl.float32)
        end = tl.load(off_ptr + f + 1)
        for start in range(tl.load(off_ptr + f), end, U):
            there = start + lane < end
            slot = tl.load(order_ptr + start + lane, mask=there, other=0)
            v = tl.load(val_ptr + slot, mask=there, other=0.0).to(tl.float32)
            dot = tl.load(dot_ptr + slot, mask=there, other=0.0).to(tl.float32)
            dvalue = shrink * v - scale * dot
            own_U += dvalue
            along_U -= scale * v * dot
            if BOUND:
                if K > 0:
                    row = slot // K
                else:
                    row = tl.load(row_ptr + slot, mask=there, other=0).to(tl.int32)
                pull_row = row
                if G > 1:
                    pull_row = row * G + tl.load(group_ptr + slot, mask=there, other=0).to(tl.int32)
                square = tl.zeros([U], tl.float32)
                for part in tl.static_range(B):
                    square += tl.load(pull_square_ptr + pull_row * B + part, mask=there, other=0.0)
                enc_U += tl.abs(dvalue) * tl.load(x_norm_ptr + row, mask=there, other=0.0)
                dec_U += tl.abs(scale * v) * tl.sqrt(square)
        own = tl.sum(own_U, axis=0)
        bias = own
        along = tl.sum(along_U, axis=0)
        enc = tl.sum(enc_U, axis=0)
        dec = tl.sum(dec_U, axis=0)
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


@triton.jit
def _row_sums(enc_ptr, dec_ptr, atom_ptr, along_ptr, enc_norm_ptr, dec_norm_ptr, D, BLOCK: tl.constexpr):
    """Of one extra row: <dW_dec, w>, ||dW_enc|| and ||dW_dec||."""
    row = tl.program_id(0).to(tl.int64)
    along = tl.zeros([BLOCK], tl.float32)
    enc_square = tl.zeros([BLOCK], tl.float32)
    dec_square = tl.zeros([BLOCK], tl.float32)
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        enc = tl.load(enc_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        dec = tl.load(dec_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        along += dec * tl.load(atom_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        enc_square += enc * enc
        dec_square += dec * dec
    tl.store(along_ptr + row, tl.sum(along, axis=0))
    tl.store(enc_norm_ptr + row, tl.sqrt(tl.sum(enc_square, axis=0)))
    tl.store(dec_norm_ptr + row, tl.sqrt(tl.sum(dec_square, axis=0)))
