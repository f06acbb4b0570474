"""Slots in feature order on the GPU: a stable counting sort that nothing waits for."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.workspace import Workspace


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
