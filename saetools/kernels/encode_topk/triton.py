"""Encode and select on the GPU: a matrix product, the maximum of every 32 pre-activations, exact selection.

The k largest elements of a row lie inside the k groups with the largest maxima: if an element of the top k were in
another group, k groups would each hold a larger (or an equal, earlier) one. So selection reads one maximum in 32 and
then k groups, never the whole row again. Groups are chosen by a threshold, then the few elements that reach it, then
among these the k largest. Ties go to the lowest index in every stage.

Two routes give pre-activations and maxima: a cuBLAS product, after which selection makes them, or one kernel that does
both (`encode_group_max`); `route` says which, "auto" measures once per shape. Rows are worked on in chunks, so
that the workspace is bounded. Pre-activations are rounded to the rows' dtype; selection is exact with respect to
them. Source: our own.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from saetools.kernels.decode.triton import gather_dot
from saetools.kernels.encode_topk.stock import lowest_ties
from saetools.kernels.triton_parts import INTERPRETED, bisect, fastest, key_value, next_power, order_key, places
from saetools.kernels.workspace import Workspace

Route = Literal["auto", "cublas", "fused"]
GROUP = 32
CHUNK_BYTES = 512 << 20
"""Pre-activations held at once."""
TILE = (128, 256, 64)


@triton.jit
def _encode_group_max(
    x_desc, w_desc, b_ptr, pre_ptr, max_ptr, N, F, D, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ACROSS: tl.constexpr,
):  # fmt: skip
    """pre = x W^T + b of a tile, and the maximum of every 32 columns; tiles of ACROSS row blocks share columns."""
    pid = tl.program_id(0)
    n_m, n_n = tl.cdiv(N, BM), tl.cdiv(F, BN)
    band = pid // (ACROSS * n_n)
    height = tl.minimum(n_m - band * ACROSS, ACROSS)
    inside = pid % (ACROSS * n_n)
    m0 = (band * ACROSS + inside % height) * BM
    n0 = (inside // height) * BN
    acc = tl.zeros([BM, BN], tl.float32)
    for d0 in range(0, D, BK):
        acc = tl.dot(x_desc.load([m0, d0]), w_desc.load([n0, d0]).T, acc)
    columns = n0 + tl.arange(0, BN)
    acc += tl.load(b_ptr + columns, mask=columns < F, other=0.0)[None, :]
    low = acc.to(pre_ptr.dtype.element_ty)
    rows = (m0 + tl.arange(0, BM)).to(tl.int64)
    inner = (rows[:, None] < N) & (columns[None, :] < F)
    tl.store(pre_ptr + rows[:, None] * F + columns[None, :], low, mask=inner)
    seen = low.to(tl.float32)
    seen = tl.where(seen != seen, float("inf"), tl.where(columns[None, :] < F, seen, float("-inf")))
    best = tl.max(tl.reshape(seen, [BM, BN // 32, 32]), axis=2)
    groups = n0 // 32 + tl.arange(0, BN // 32)
    n_groups = tl.cdiv(F, 32)
    tl.store(
        max_ptr + rows[:, None] * n_groups + groups[None, :],
        best,
        mask=(rows[:, None] < N) & (groups[None, :] < n_groups),
    )


@triton.jit
def _larger(a, b):
    """The larger of two, or NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _write_maxima(
    pre_ptr, b_ptr, max_ptr, row, start, F, n_groups, BLOCK: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr
):  # fmt: skip
    """The maxima of every GROUP of a row's pre (+ b), of BLOCK columns from `start`."""
    columns = start + tl.arange(0, BLOCK)
    v = tl.load(pre_ptr + row * F + columns, mask=columns < F, other=float("-inf")).to(tl.float32)
    if BIAS:
        v += tl.load(b_ptr + columns, mask=columns < F, other=0.0)
    best = tl.reduce(tl.reshape(v, [BLOCK // GROUP, GROUP]), 1, _larger)
    best = tl.where(best != best, float("inf"), best)  # of one in GROUP, not of all
    groups = start // GROUP + tl.arange(0, BLOCK // GROUP)
    tl.store(max_ptr + row * n_groups + groups, best, mask=groups < n_groups)


@triton.jit
def _group_max(pre_ptr, b_ptr, max_ptr, F, BLOCK: tl.constexpr):
    """The maxima of every 32 of pre + b; one pass over a row."""
    row, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    _write_maxima(pre_ptr, b_ptr, max_ptr, row, start, F, tl.cdiv(F, 32), BLOCK, 32, True)


@triton.jit
def _select(
    pre_ptr, b_ptr, max_ptr, scratch_ptr, val_ptr, idx_ptr, key_ptr, F, n_groups, first,
    K: tl.constexpr, NG: tl.constexpr, GC: tl.constexpr, S: tl.constexpr, KP: tl.constexpr, RELU: tl.constexpr,
    BIAS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The K largest of a row, from the maxima of every GROUP, which are written first, BLOCK columns at a time, or are
    there (BLOCK = 0); key: the feature, or F for a slot that is not in use."""
    row = tl.program_id(0).to(tl.int64)
    if BLOCK > 0:
        for start in range(0, F, BLOCK):
            _write_maxima(pre_ptr, b_ptr, max_ptr, row, start, F, n_groups, BLOCK, GROUP, BIAS)
        tl.debug_barrier()
    g = tl.arange(0, NG)
    best = tl.load(max_ptr + row * n_groups + g, mask=g < n_groups, other=float("-inf"))
    group_keys = tl.maximum(best.to(tl.int32, bitcast=True), 0) if RELU else order_key(best)  # none is NaN
    hi = tl.max(group_keys, axis=0)
    wanted = tl.minimum(K, n_groups)
    lo = 0 if RELU else tl.min(tl.where(g < n_groups, group_keys, hi), axis=0)
    lo = tl.minimum(lo, hi)
    threshold = lo
    if n_groups > wanted:
        threshold = bisect(group_keys, lo, hi, wanted, GC)
    taken, place, n_taken = places(tl.where(g < n_groups, group_keys, -2147483648), threshold, GC)
    scratch = scratch_ptr + row * (2 * S + GC)  # pairs of 8 bytes first, at places that 8 divides: S and GC are even
    tl.store(scratch + 2 * S + place, g, mask=taken)
    tl.debug_barrier()
    slot = tl.arange(0, GC)
    chosen = tl.load(scratch + 2 * S + slot, mask=slot < n_taken, other=0)
    columns = chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    there = (slot < n_taken)[:, None] & (columns < F)
    v = tl.load(pre_ptr + row * F + columns, mask=there, other=float("-inf")).to(tl.float32)
    if BIAS:
        v += tl.load(b_ptr + columns, mask=there, other=0.0)
    keys = tl.reshape(tl.where(there, order_key(v), -2147483648), [GC * GROUP])
    if n_groups < K:  # the groups' threshold says nothing of the elements'
        threshold = tl.minimum(0 if RELU else tl.min(tl.where(keys > -2147483648, keys, hi), axis=0), hi)
    # few elements reach the groups' threshold (1.07 k of Gaussian ones): those are written together, and chosen from
    if tl.sum((keys >= threshold).to(tl.int32), axis=0) > S:
        threshold = bisect(keys, threshold, hi, K, S)
    taken, place, n_taken = places(keys, threshold, S)
    both = (keys.to(tl.int64) << 32) | tl.reshape(columns, [GC * GROUP]).to(tl.int64)  # one scattered store, not two
    pairs = scratch.to(tl.pointer_type(tl.int64))
    tl.store(pairs + place, both, mask=taken)
    tl.debug_barrier()
    s = tl.arange(0, S)
    both_s = tl.load(pairs + s, mask=s < n_taken, other=-9223372036854775808)
    columns_s = both_s.to(tl.int32)
    keys_s = (both_s >> 32).to(tl.int32)
    threshold = bisect(keys_s, tl.minimum(threshold, hi), hi, K, K)
    taken, place, n_taken = places(keys_s, threshold, K)
    values = key_value(keys_s)
    if RELU:
        used = values > 0
        values = tl.where(used, values, 0.0)
        tl.store(idx_ptr + row * K + place, tl.where(used, columns_s + first, 0), mask=taken)
        tl.store(key_ptr + row * K + place, tl.where(used, columns_s, F), mask=taken)
    else:
        tl.store(idx_ptr + row * K + place, columns_s + first, mask=taken)
        tl.store(key_ptr + row * K + place, columns_s, mask=taken)
    tl.store(val_ptr + row * K + place, values, mask=taken)
    k = tl.arange(0, KP)
    rest = (k >= n_taken) & (k < K)
    tl.store(val_ptr + row * K + k, tl.zeros([KP], tl.float32), mask=rest)
    tl.store(idx_ptr + row * K + k, tl.zeros([KP], tl.int32), mask=rest)
    tl.store(key_ptr + row * K + k, tl.zeros([KP], tl.int32) + F, mask=rest)


def can_fuse(x_ND: Tensor) -> bool:
    """Whether the one-kernel product runs on these rows: its tiles are copied by hardware in units of 16 bytes."""
    return x_ND.shape[1] * x_ND.element_size() % 16 == 0 and (x_ND.dtype == torch.bfloat16 or INTERPRETED)


def encode_group_max(x_ND: Tensor, W_FD: Tensor, b_F: Tensor, pre_NF: Tensor, max_NG: Tensor) -> None:
    """pre_NF = x W^T + b rounded to its dtype, and the maximum of every 32 of them, by one kernel."""
    (N, D), F = x_ND.shape, len(W_FD)
    BM, BN, BK = (32, 64, 32) if INTERPRETED else TILE
    descriptors = TensorDescriptor.from_tensor(x_ND, [BM, BK]), TensorDescriptor.from_tensor(W_FD, [BN, BK])
    grid = (triton.cdiv(N, BM) * triton.cdiv(F, BN),)
    _encode_group_max[grid](
        *descriptors, b_F, pre_NF, max_NG, N, F, D, BM=BM, BN=BN, BK=BK, ACROSS=8, num_warps=8, num_stages=3
    )


def group_max(pre_NF: Tensor, b_F: Tensor, max_NG: Tensor, block: int = 8192) -> None:
    """The maximum of every 32 of pre + b."""
    N, F = pre_NF.shape
    block = min(block, max(32, next_power(F)))
    warps = max(1, min(8, block // 1024))
    _group_max[(N, triton.cdiv(F, block))](pre_NF, b_F, max_NG, F, BLOCK=block, num_warps=warps)


def select(
    pre_NF: Tensor,
    b_F: Tensor | None,
    max_NG: Tensor,
    scratch: Tensor,
    out: tuple[Tensor, Tensor, Tensor],
    k: int,
    relu: bool,
    first: int = 0,
    warps: int | None = None,
    *,
    given: bool = False,
    group: int = GROUP,
) -> None:
    """values, indices and sort keys of the k largest of pre (+ b) in each row, by the maxima of its groups, which are
    `given` or written."""
    N, F = pre_NF.shape
    n_groups = next_power(max_NG.shape[1])
    capacity, survivors = group_capacity(k, F, group), survivor_capacity(k, F, group)
    held = max(n_groups, capacity * group, 2 * survivors)
    warps = warps or (16 if held > 8192 else 8 if held > 4096 else 4)
    block = (2048 if held > 1024 else 1024) * warps
    _select[(N,)](
        pre_NF, b_F if b_F is not None else pre_NF, max_NG, scratch, *out, F, max_NG.shape[1], first, K=k, NG=n_groups,
        GC=capacity, S=survivors, KP=next_power(k), RELU=relu, BIAS=b_F is not None, GROUP=group,
        BLOCK=0 if given else min(block, max(group, next_power(F))), num_warps=warps,
        maxnreg=168 if warps == 4 else None,  # unasked the assembler spills one register at k = 32
    )  # fmt: skip


def group_size(k: int, n_features: int) -> int:
    """Elements of a group, of which k are looked into, so that about as many elements are as there are groups."""
    return 1 << max(1, min(5, round(math.log2(n_features / k) / 2)))


def group_capacity(k: int, n_features: int, group: int = GROUP) -> int:
    """How many groups the second stage of selection holds; even, since pairs of integers lie beside their list. Small
    ones are twice as many as are needed: their threshold is found sooner."""
    slack = 1 if group == GROUP else 2
    return max(2, min(slack * next_power(k), next_power(triton.cdiv(n_features, group))))


def survivor_capacity(k: int, n_features: int, group: int = GROUP) -> int:
    """How many elements the last stage holds."""
    return min(max(16, next_power(2 * k)), group * group_capacity(k, n_features, group))


def scratch_columns(k: int, n_features: int, group: int = GROUP) -> int:
    """Integers that the selection of a row writes for itself."""
    return 2 * survivor_capacity(k, n_features, group) + group_capacity(k, n_features, group)


def chunk_rows(n_rows: int, n_features: int, element_size: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Rows whose pre-activations are held at once; a multiple of 128 where there are so many."""
    rows = max(1, chunk_bytes // (n_features * element_size))
    return min(n_rows, rows if rows < 128 else rows // 128 * 128)


def encode_into(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    out: tuple[Tensor, Tensor, Tensor],
    workspace: Workspace,
    *,
    relu: bool = True,
    first: int = 0,
    route: Route = "auto",
    chunk_bytes: int = CHUNK_BYTES,
    seen: Callable[[slice, Tensor, bool], None] | None = None,
) -> None:
    """Write values_NK, indices_NK and keys_NK; no allocation but in `workspace`, no synchronisation. `seen` is given
    the pre-activations of some rows, before those of others take their place, and whether b is in them."""
    (N, _), F = x_ND.shape, len(W_FD)
    if N == 0:
        return
    rows = chunk_rows(N, F, x_ND.element_size(), chunk_bytes)
    pre_CF = workspace.get("encode.pre", (rows, F), x_ND.dtype, x_ND.device)
    max_CG = workspace.get("encode.max", (rows, triton.cdiv(F, GROUP)), torch.float32, x_ND.device)
    scratch = workspace.get("encode.groups", (rows, scratch_columns(k, F)), torch.int32, x_ND.device)

    def run(route: Route, start: int) -> None:
        n = min(rows, N - start)
        x_CD, pre, best = x_ND[start : start + n], pre_CF[:n], max_CG[:n]
        parts = out[0][start : start + n], out[1][start : start + n], out[2][start : start + n]
        if route == "fused":
            encode_group_max(x_CD, W_FD, b_F, pre, best)
            select(pre, None, best, scratch, parts, k, relu, first, given=True)
        else:
            torch.mm(x_CD, W_FD.T, out=pre)
            select(pre, b_F, best, scratch, parts, k, relu, first)

    if route == "auto":
        route = _fastest_route((rows, *x_ND.shape, F, k, x_ND.dtype, x_ND.device), can_fuse(x_ND), run)
    for start in range(0, N, rows):
        run(route, start)
        if seen is not None:
            part = slice(start, min(N, start + rows))
            seen(part, pre_CF[: part.stop - start], route == "fused")


def encode_topk(
    x_ND: Tensor, W_FD: Tensor, b_F: Tensor, k: int, relu: bool, screen: int, first: int, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """values_NK in the rows' dtype and indices_NK, as the reference. `screen` > 0: that many candidates are chosen by a
    bf16 product and computed in float32; among these the k largest (this waits for the device, where scores tie).
    """
    if screen:
        _, found = encode_topk(x_ND.bfloat16(), W_FD.bfloat16(), b_F, min(screen, len(W_FD)), False, 0, 0, workspace)
        scores = gather_dot(found.view(-1), found.shape[1], x_ND, W_FD, b_F.float()).view_as(found)
        values, chosen = lowest_ties(scores, found.long(), k)
        indices = (chosen + first).int()
        return (values.relu(), torch.where(values > 0, indices, 0)) if relu else (values, indices)
    shape = (len(x_ND), k)
    values = torch.empty(shape, dtype=torch.float32, device=x_ND.device)
    indices, keys = (torch.empty(shape, dtype=torch.int32, device=x_ND.device) for _ in range(2))
    encode_into(x_ND, W_FD, b_F.float(), k, (values, indices, keys), workspace, relu=relu, first=first)
    return values.to(x_ND.dtype), indices


_ROUTES: dict[tuple[Any, ...], Route] = {}


def _fastest_route(key: tuple[Any, ...], fusible: bool, run: Callable[[Route, int], None]) -> Route:
    """The faster of both routes at this shape, measured once on this device by encoding the first rows."""
    if key not in _ROUTES:
        if key[-1].type != "cuda" or not fusible or torch.cuda.is_current_stream_capturing():
            return "cublas"
        routes: tuple[Route, Route] = ("cublas", "fused")
        _ROUTES[key] = routes[fastest([partial(run, route, 0) for route in routes])]
    return _ROUTES[key]
