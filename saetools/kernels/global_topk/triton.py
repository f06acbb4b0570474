"""Selection over the whole batch on the GPU: static shapes, a fixed number of passes, nothing waits for the device.

Candidates are the scores that reach a bound. The bound is the n-th largest of the maxima of every 32 scores: n scores
of the batch reach it, and hardly more (1.07 n of Gaussian ones); or it is a guess, the last batch's threshold lowered,
which saves the second product where pre-activations do not fit into one chunk, and may lie on the device. Groups whose
maximum is below the bound are never read. Candidates lie in order of row and feature; their n-th largest key is found
four bits a pass, by counts at fifteen pivots, and a last pass writes what reaches it, of equals the first. There are no
atomics, so that the result is a function of the input. A flag on the device says that there were more candidates than
room, or that fewer than n reached a guess: then the result is void and `global_topk` does it again, with more room or
without the guess.
Source: our own.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.decode.triton import gather_dot
from saetools.kernels.encode_topk.triton import CHUNK_BYTES, chunk_rows, group_max
from saetools.kernels.score import Score
from saetools.kernels.sparse import Sparse
from saetools.kernels.triton_parts import next_power, order_key
from saetools.kernels.workspace import Workspace

SHIFTS = (27, 23, 19, 15, 11, 7, 3, 0)
"""Of the bits that each pass decides: positive keys have 31."""
BOUND_PASSES = 4
"""Of which the bound takes as many: 2^-8 of itself, what bf16 tells apart; lower bits would spare few candidates."""
ROOM = 1.5
"""Candidates for which there is room, as a multiple of what is kept."""
MARGIN = 1.25
"""Slots chosen by a bf16 product, as a multiple of what is kept; their values are then computed in float32."""
BLOCK = 1024


@triton.jit
def _key(v):
    """Keys in the order of positive scores; NaN is the greatest; 0 for what is not positive."""
    return tl.where(v != v, 2147483647, tl.maximum(order_key(v), 0))


@triton.jit
def _candidates(
    score_ptr, pre_ptr, b_ptr, max_ptr, bound_ptr, start_ptr, count_ptr, key_ptr, index_ptr, value_ptr, group_ptr,
    near_ptr, F, n_groups, room, NG: tl.constexpr, GC: tl.constexpr, BIAS: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Scores of a row that reach the bound: how many, with a list of the groups that hold them; or (WRITE), by that
    list, keys, features and values from the row's start on."""
    row = tl.program_id(0).to(tl.int64)
    bound = tl.load(bound_ptr)
    groups = group_ptr + row * n_groups
    n_near = 0
    if WRITE:
        n_near = tl.load(near_ptr + row)
    else:
        for g0 in range(0, n_groups, NG):
            g = g0 + tl.arange(0, NG)
            near = _key(tl.load(max_ptr + row * n_groups + g, mask=g < n_groups, other=0.0)) >= bound
            near_here = tl.cumsum(near.to(tl.int32), 0)
            tl.store(groups + n_near + near_here - 1, g, mask=near)
            n_near += tl.sum(near.to(tl.int32), axis=0)
        tl.store(near_ptr + row, n_near)
        tl.debug_barrier()  # what one thread has stored another reads
    start = tl.load(start_ptr + row)
    n = start
    for s0 in range(0, n_near, GC):
        slot = s0 + tl.arange(0, GC)
        f = tl.load(groups + slot, mask=slot < n_near, other=0)[:, None] * 32 + tl.arange(0, 32)[None, :]
        inside = (slot < n_near)[:, None] & (f < F)
        v = tl.load(score_ptr + row * F + f, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            v += tl.load(b_ptr + f, mask=inside, other=0.0)
        key = tl.reshape(tl.where(inside, _key(v), 0), [GC * 32])
        taken = key >= bound
        if WRITE:
            place = n + tl.cumsum(taken.to(tl.int32), 0) - 1
            here = taken & (place < room)
            flat = tl.reshape(f, [GC * 32])
            if BIAS:  # the score is the value
                value = tl.reshape(v, [GC * 32])
            else:
                value = tl.load(pre_ptr + row * F + flat, mask=here, other=0.0).to(tl.float32)
                value += tl.load(b_ptr + flat, mask=here, other=0.0)
            tl.store(key_ptr + place, key, mask=here)
            tl.store(index_ptr + place, flat, mask=here)
            tl.store(value_ptr + place, value, mask=here)
        n += tl.sum(taken.to(tl.int32), axis=0)
    if not WRITE:
        tl.store(count_ptr + row, n - start)


@triton.jit
def _reached(part_ptr, n_parts, lo, n_kept, shift, PARTS: tl.constexpr):
    """The lower end raised to the highest pivot that n_kept keys reach, from all programs' counts at the pivots."""
    j = tl.arange(0, 16)
    total = tl.zeros([16], tl.int32)
    for p0 in range(0, n_parts, PARTS):
        p = p0 + tl.arange(0, PARTS)
        there = (p < n_parts)[:, None] & (j >= 0)[None, :]
        total += tl.sum(tl.load(part_ptr + p[:, None] * 16 + j[None, :], mask=there, other=0), axis=0)
    best = tl.max(tl.where((total >= n_kept) & (j > 0), j, 0), axis=0)
    return lo + (best << shift)


@triton.jit(do_not_specialize=["number", "shift_before", "shift", "most"])  # one kernel for all passes
def _count_at_pivots(
    key_ptr, n_ptr, n_kept, part_in_ptr, part_out_ptr, lo_ptr, number, shift_before, shift, most,
    PARTS: tl.constexpr, SIZE: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    """Counts of keys at lo + j 2^shift, j = 1..most; lo, kept at its pass's number, is what the pass before found."""
    n_parts = tl.num_programs(0)
    lo = 0
    if number > 0:
        lo = _reached(part_in_ptr, n_parts, tl.load(lo_ptr + number - 1), n_kept, shift_before, PARTS)
    if tl.program_id(0) == 0:
        tl.store(lo_ptr + number, lo)
    j = tl.arange(0, 16)
    pivots = lo + (tl.minimum(j, most) << shift)
    counts = tl.zeros([16], tl.int32)
    n = tl.load(n_ptr)
    for start in range(tl.program_id(0) * SIZE, n, n_parts * SIZE):
        m = start + tl.arange(0, SIZE)
        if FLOAT:
            key = _key(tl.load(key_ptr + m, mask=m < n, other=0.0))
        else:
            key = tl.load(key_ptr + m, mask=m < n, other=0)
        counts += tl.sum((key[:, None] >= pivots[None, :]).to(tl.int32), axis=0)
    tl.store(part_out_ptr + tl.program_id(0) * 16 + j, tl.where(j <= most, counts, 0))


@triton.jit
def _threshold(before_ptr, part_ptr, n_parts, n_kept, shift, out_ptr, least, PARTS: tl.constexpr):
    """The n-th largest key, or `least` where there are fewer."""
    tl.store(out_ptr, tl.maximum(_reached(part_ptr, n_parts, tl.load(before_ptr), n_kept, shift, PARTS), least))


@triton.jit
def _tally(key_ptr, n_ptr, threshold_ptr, above_ptr, equal_ptr, SIZE: tl.constexpr):
    """How many keys of a block lie above the threshold, and how many equal it."""
    m = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    key = tl.load(key_ptr + m, mask=m < tl.load(n_ptr), other=0)
    t = tl.load(threshold_ptr)
    tl.store(above_ptr + tl.program_id(0), tl.sum((key > t).to(tl.int32), axis=0))
    tl.store(equal_ptr + tl.program_id(0), tl.sum(((key == t) & (key > 0)).to(tl.int32), axis=0))


@triton.jit
def _emit(
    key_ptr, index_ptr, value_ptr, n_ptr, threshold_ptr, above_ptr, equal_ptr, n_blocks, rank_ptr, out_index_ptr,
    out_value_ptr, n_kept, first, room, SIZE: tl.constexpr,
):  # fmt: skip
    """Kept slots in order, and for every candidate how many slots are kept before it."""
    block = tl.program_id(0)
    m = block * SIZE + tl.arange(0, SIZE)
    n = tl.load(n_ptr)
    key = tl.load(key_ptr + m, mask=m < n, other=0)
    t = tl.load(threshold_ptr)
    above, equal = key > t, (key == t) & (key > 0)
    allowed = n_kept - tl.load(above_ptr + n_blocks - 1)  # both count to the end of their block
    n_above = tl.load(above_ptr + block) - tl.sum(above.to(tl.int32), axis=0)
    n_equal = tl.load(equal_ptr + block) - tl.sum(equal.to(tl.int32), axis=0)
    up_to_above = n_above + tl.cumsum(above.to(tl.int32), 0)
    up_to_equal = n_equal + tl.cumsum(equal.to(tl.int32), 0)
    taken = above | (equal & (up_to_equal <= allowed))
    place = up_to_above + tl.minimum(up_to_equal, allowed) - taken.to(tl.int32)
    tl.store(rank_ptr + m, place, mask=m <= room)
    index = tl.load(index_ptr + m, mask=taken, other=0)
    tl.store(out_index_ptr + place, index + first, mask=taken)
    tl.store(out_value_ptr + place, tl.load(value_ptr + m, mask=taken, other=0.0), mask=taken)


@dataclass(frozen=True)
class Candidates:
    """Slots in order of row and feature; those beyond n are void."""

    keys_M: Tensor  # int32
    indices_M: Tensor  # int32
    values_M: Tensor  # float32
    starts_N1: Tensor  # int64, where each row's begin
    n: Tensor  # int32, as many as there is room for

    @staticmethod
    def room_for(room: int, starts_N1: Tensor, n: Tensor, workspace: Workspace, name: str) -> "Candidates":
        """Void ones."""
        device = starts_N1.device
        keys, indices = (workspace.get(f"{name}.{what}", (room,), torch.int32, device) for what in ("keys", "indices"))
        return Candidates(keys, indices, workspace.get(f"{name}.values", (room,), torch.float32, device), starts_N1, n)


@dataclass(frozen=True)
class Kept:
    """What was selected, still on the device: the first offsets_N1[-1] of n_kept slots."""

    values_M: Tensor
    indices_M: Tensor
    offsets_N1: Tensor  # int64
    threshold: Tensor  # int32 key; 0 where fewer than n_kept are positive
    n_candidates: Tensor  # int64 [1], with those for which there was no room
    flag: Tensor  # bool [1]: there was not enough room, or the guess was too high


def nth_largest(
    keys: Tensor, n: Tensor, n_kept: int, least: int, workspace: Workspace, n_passes: int = len(SHIFTS)
) -> Tensor:
    """The n_kept-th largest key of the first n (or the key of the n_kept-th largest float); `least` if there are fewer.

    With fewer passes its lower bits are 0. int32, on the device; n_passes + 1 launches.
    """
    size, warps = (4 * BLOCK, 16) if keys.is_floating_point() else (BLOCK, 4)  # floats are many: the maxima of a batch
    device, n_programs = keys.device, min(256, triton.cdiv(len(keys), size))
    lows = workspace.get("global.lows", (len(SHIFTS) + 1,), torch.int32, device)
    parts = workspace.get("global.parts", (2, n_programs, 16), torch.int32, device)
    PARTS = min(64, next_power(n_programs))
    for number, shift in enumerate(SHIFTS[:n_passes]):
        _count_at_pivots[(n_programs,)](
            keys, n, n_kept, parts[(number + 1) % 2], parts[number % 2], lows, number, SHIFTS[max(number - 1, 0)],
            shift, 7 if shift == 0 else 15, PARTS=PARTS, SIZE=size, FLOAT=keys.is_floating_point(),
            num_warps=warps,
        )  # fmt: skip
    last = n_passes - 1
    _threshold[(1,)](
        lows[last:], parts[last % 2], n_programs, n_kept, SHIFTS[last], lows[last + 1 :], least, PARTS=PARTS
    )
    return lows[last + 1 : last + 2].clone()


def keep(
    c: Candidates, n_kept: int, first: int, workspace: Workspace, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(values, indices, offsets, threshold) of the n_kept largest candidates, ties to the first; void slots are 0."""
    room, device = len(c.keys_M), c.keys_M.device
    threshold = nth_largest(c.keys_M, c.n, n_kept, 0, workspace)
    n_blocks = triton.cdiv(room + 1, BLOCK)
    tallies = workspace.get("global.tallies", (2, n_blocks), torch.int32, device)
    _tally[(n_blocks,)](c.keys_M, c.n, threshold, tallies[0], tallies[1], SIZE=BLOCK)
    tallies = torch.cumsum(tallies, dim=1, dtype=torch.int32)
    rank = workspace.get("global.rank", (room + 1,), torch.int32, device)
    if out is None:
        out = (
            torch.empty(n_kept, dtype=torch.float32, device=device),
            torch.empty(n_kept, dtype=torch.int32, device=device),
        )
    values, indices = (t.zero_() for t in out)
    _emit[(n_blocks,)](
        c.keys_M, c.indices_M, c.values_M, c.n, threshold, tallies[0], tallies[1], n_blocks, rank, indices, values,
        n_kept, first, room, SIZE=BLOCK,
    )  # fmt: skip
    offsets_N1 = rank.index_select(0, c.starts_N1.clamp(max=room)).long()
    return values, indices, offsets_N1, threshold


def select(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    n_kept: int,
    score: Score | None,
    workspace: Workspace,
    *,
    room: int,
    bound: Tensor | None = None,
    first: int = 0,
    chunk_bytes: int = CHUNK_BYTES,
    out: tuple[Tensor, Tensor] | None = None,
) -> Kept:
    """The n_kept largest scores of the batch by pre-activations in the rows' dtype; no synchronisation.

    bound: the key (`bound_of`, int32 [1] on the device) that candidates must reach; None: that which the n-th largest
    group maximum gives, which too few never reach. out: where values and indices are written.
    """
    (N, _), F, device = x_ND.shape, len(W_FD), x_ND.device
    rows = chunk_rows(N, F, x_ND.element_size() if score is None else 8, chunk_bytes)
    pre_CF = workspace.get("global.pre", (rows, F), x_ND.dtype, device)
    max_NG = workspace.get("global.max", (N, triton.cdiv(F, 32)), torch.float32, device)
    counts_N = workspace.get("global.counts", (N,), torch.int64, device)
    groups_CG = workspace.get("global.groups", (rows, max_NG.shape[1]), torch.int32, device)
    near_C = workspace.get("global.near", (rows,), torch.int32, device)
    starts_N1 = torch.zeros(N + 1, dtype=torch.int64, device=device)
    reach = torch.empty(1, dtype=torch.int32, device=device) if bound is None else bound
    found = Candidates.room_for(room, starts_N1, starts_N1.new_zeros(1, dtype=torch.int32), workspace, "global")

    def product(part: slice) -> tuple[Tensor, Tensor]:
        """(scores, pre less b) of some rows; their maxima are written."""
        pre = torch.mm(x_ND[part], W_FD.T, out=pre_CF[: len(x_ND[part])])
        scores, b = (pre, b_F) if score is None else (score.of(pre.float() + b_F, part), torch.zeros_like(b_F))
        group_max(scores, b, max_NG[part])
        return scores, pre

    def collect(part: slice, scores: Tensor, pre: Tensor) -> None:
        def run(write: bool) -> None:
            _candidates[(len(pre),)](
                scores, pre, b_F, max_NG[part], reach, starts_N1[part.start :], counts_N[part.start :], found.keys_M,
                found.indices_M, found.values_M, groups_CG, near_C, F, max_NG.shape[1], room,
                NG=min(2048, next_power(max_NG.shape[1])), GC=32, BIAS=score is None, WRITE=write,
            )  # fmt: skip

        run(False)
        end = part.start + len(pre)
        starts_N1[part.start + 1 : end + 1] = counts_N[part].cumsum(0) + starts_N1[part.start]
        run(True)

    parts = [slice(start, min(start + rows, N)) for start in range(0, N, rows)]
    scores, pre = product(parts[0])
    if bound is None:
        for part in parts[1:]:
            scores, pre = product(part)
        n_maxima = torch.full((1,), max_NG.numel(), dtype=torch.int32, device=device)
        reach.copy_(nth_largest(max_NG.view(-1), n_maxima, n_kept, 1, workspace, BOUND_PASSES))
        if len(parts) > 1:
            scores, pre = product(parts[0])
    collect(parts[0], scores, pre)
    for part in parts[1:]:
        collect(part, *product(part))
    found.n.copy_(starts_N1[-1:].clamp(max=room))
    n = starts_N1[-1:]
    return Kept(*keep(found, n_kept, first, workspace, out), n, (n > room) | ((n < n_kept) & (reach > 1)))


def bound_of(guess: float, device: torch.device) -> Tensor | None:
    """The key of a positive guess; None for others."""
    if not 0 < guess < math.inf:
        return None
    return torch.full((1,), guess, dtype=torch.float32, device=device).view(torch.int32).clamp_(min=1)


def global_topk(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    n_kept: int,
    score: Score | None,
    guess: float,
    first: int,
    low: bool,
    workspace: Workspace,
) -> tuple[Sparse, float]:
    """As the reference. `low`: chosen by a bf16 product with a margin, by value in float32 from there on.

    The host waits once, for the number of slots; again where the flag was raised.
    """
    total = len(x_ND) * len(W_FD)
    screened = low and score is None and x_ND.dtype == torch.float32
    wanted = min(total, math.ceil(n_kept * MARGIN)) if screened else n_kept
    rows, W = (x_ND.bfloat16(), W_FD.bfloat16()) if screened else (x_ND, W_FD)
    if screened:
        guess *= n_kept / wanted  # more are to reach it
    room = min(total, math.ceil(ROOM * wanted) + BLOCK)
    b = b_F.float()
    while True:
        bound = bound_of(guess, x_ND.device)
        kept = select(rows, W, b, wanted, score, workspace, room=room, bound=bound, first=0 if screened else first)
        n_candidates, flagged = int(kept.n_candidates), bool(kept.flag)
        if not flagged:
            break
        room, guess = max(room, min(total, n_candidates)), (guess if n_candidates >= wanted else 0.0)
    threshold = kept.threshold
    values, indices, offsets = kept.values_M, kept.indices_M, kept.offsets_N1
    if screened and (n := int(offsets[-1])):
        slots = Sparse(values[:n], indices[:n], offsets)
        again = gather_dot(slots.indices_M, slots.rows(), x_ND, W_FD, b)
        keys = torch.where(again > 0, again.view(torch.int32), torch.where(again.isnan(), 2**31 - 1, 0))
        chosen = Candidates(keys, slots.indices_M, again, offsets, offsets[-1:].int())
        values, indices, offsets, threshold = keep(chosen, n_kept, first, workspace)
    n_used = int(offsets[-1])
    return Sparse(values[:n_used].to(x_ND.dtype), indices[:n_used], offsets), _value(int(threshold))


def _value(key: int) -> float:
    """The positive score of a key; NaN for the greatest."""
    return math.nan if key == 2**31 - 1 else float(torch.tensor(key, dtype=torch.int32).view(torch.float32))
