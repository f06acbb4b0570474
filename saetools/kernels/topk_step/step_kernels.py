"""What `triton.py` launches beside the operations that a step is made of: centred rows, the record of a batch."""

import triton
import triton.language as tl

from saetools.kernels.topk_step.choice import next_bound


@triton.jit
def _centre(x_ptr, b_ptr, out_ptr, norm_ptr, D, BLOCK: tl.constexpr):
    """x - b_dec of one row, rounded to the type that is multiplied, and its norm."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + d, mask=d < D, other=0.0)
    centred = (x - b).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * D + d, centred, mask=d < D)
    centred = centred.to(tl.float32)
    tl.store(norm_ptr + row, tl.sqrt(tl.sum(centred * centred, axis=0)))


@triton.jit
def _record(
    ring_ptr, n_ring, control_ptr, count_ptr, sum_ptr, aux_ptr, flag_ptr, off_ptr, dead_ptr, n_parts, helped_ptr, scale,
    N, F, capacity, least_ptr, threshold_ptr, bound_ptr, share,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, AUX: tl.constexpr, HELP: tl.constexpr, CHOICE: tl.constexpr,
):  # fmt: skip
    """One row of statistics; what the next batch's selection tries (CHOICE); and the flag of the next batch, where this
    one has it or more features are dead than AuxK has room for."""
    parts = tl.arange(0, PARTS)
    n_dead = tl.sum(tl.load(dead_ptr + parts, mask=parts < n_parts, other=0), axis=0)
    out = ring_ptr + (tl.load(count_ptr + 1) - 1) % n_ring * WIDTH
    tl.store(out, tl.load(sum_ptr) * scale)
    beyond = 0.0
    auxiliary = 0.0
    if AUX:
        auxiliary = tl.load(aux_ptr)
        beyond = tl.maximum(tl.load(helped_ptr).to(tl.float32) - capacity, 0.0)
    tl.store(out + 1, auxiliary)
    tl.store(out + 2, tl.load(off_ptr + F).to(tl.float32) / N)
    tl.store(out + 3, n_dead.to(tl.float32))
    applied = tl.load(control_ptr)
    tl.store(out + 4, tl.load(control_ptr + 5))
    tl.store(out + 5, applied)
    tl.store(out + 6, beyond)
    flag = tl.load(flag_ptr)
    tl.store(out + 7, flag.to(tl.float32))
    if HELP:
        tl.store(flag_ptr, flag | (n_dead > capacity).to(tl.int32))
    least = 0.0
    if CHOICE:
        least = next_bound(least_ptr, N + 1, threshold_ptr, bound_ptr, share, applied, 1024)
    tl.store(out + 8, least)
