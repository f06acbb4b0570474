"""Device functions that several Triton kernels share: order-preserving keys, thresholds by bisection, compaction.

Imported by `triton.py` files alone, so triton is needed only where it runs. With TRITON_INTERPRET=1 in the
environment the same kernels run on CPU tensors, slowly: that is how the tests check them without a GPU.
"""

import statistics
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
GROUP = tl.constexpr(32)


@triton.jit
def order_key(v):
    """int32 keys in the order of float32 values; NaN counts as +inf, so that it is always among the largest."""
    v = tl.where(v != v, float("inf"), v)
    bits = v.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def key_value(keys):
    """The float32 values of keys (NaN comes back as +inf)."""
    return tl.where(keys < 0, keys ^ 0x7FFFFFFF, keys).to(tl.float32, bitcast=True)


@triton.jit
def mean(a, b):
    """(a + b) / 2 rounded up, without overflow."""
    return (a | b) - ((a ^ b) >> 1)


@triton.jit
def bisect(keys, lo, hi, k, most):
    """A t in lo..hi with k <= count(keys >= t) <= most, else the largest t with at least k; at least k must be >= lo.

    The first guess is half the largest value (keys of floats: one exponent less); it ends as soon as the count fits.
    """
    mid = tl.maximum(hi - (1 << 23), lo + 1)
    while lo < hi:
        mid = tl.minimum(mid, hi)
        low = mean(lo, mid)
        high = mean(mid, hi)
        # three counts in one sum of 64-bit integers, 21 bits each
        above = (keys >= low).to(tl.int64) + ((keys >= mid).to(tl.int64) << 21) + ((keys >= high).to(tl.int64) << 42)
        counts = tl.sum(above, axis=0)
        n_low = (counts & 2097151).to(tl.int32)
        n_mid = ((counts >> 21) & 2097151).to(tl.int32)
        n_high = (counts >> 42).to(tl.int32)
        # the highest of the three that enough reach, and the lowest that too few do
        best = tl.where(n_high >= k, high, tl.where(n_mid >= k, mid, tl.where(n_low >= k, low, lo)))
        n_best = tl.where(n_high >= k, n_high, tl.where(n_mid >= k, n_mid, n_low))
        under = tl.where(n_low < k, low - 1, tl.where(n_mid < k, mid - 1, tl.where(n_high < k, high - 1, hi)))
        fits = (n_low >= k) & (n_best <= most)
        lo = best
        hi = tl.where(fits, best, under)
        mid = mean(lo, hi)
    return lo


@triton.jit
def places(keys, threshold, most):
    """(taken, place, how many): the keys above the threshold and, of those equal to it, the first, `most` in all; in
    order."""
    above = keys > threshold
    equal = keys == threshold
    ones = above.to(tl.int32) * 65536 + equal.to(tl.int32)
    counts = tl.cumsum(ones, 0)
    total = tl.sum(ones, axis=0)
    room = most - (total >> 16)
    above_here = counts >> 16
    equal_here = counts & 65535
    taken = above | (equal & (equal_here <= room))
    return taken, above_here + tl.minimum(equal_here, room) - 1, most - room + tl.minimum(total & 65535, room)


@triton.jit
def stochastic_bf16(v, noise):
    """v rounded to bf16, up or down with the probability that keeps its mean; noise: uniform 32-bit integers."""
    bits = v.to(tl.uint32, bitcast=True) + (noise.to(tl.uint32, bitcast=True) & 0xFFFF)
    return (bits & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def row_slots(off_ptr, row, K: tl.constexpr):
    """The first slot of a row and the one after its last. K = 0: a ragged code, whose offsets say."""
    if K > 0:
        start = row * K
        end = start + K
    else:
        start = tl.load(off_ptr + row)
        end = tl.load(off_ptr + row + 1)
    return start, end


def next_power(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def n_processors(device: torch.device) -> int:
    """Streaming multiprocessors of the GPU; 2 for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def fastest(works: Sequence[Callable[[], object]], repeats: int = 7) -> int:
    """Which of them takes least: medians by device events, in turn, so that a chip that warms up favours none."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 2):
        for work, known in zip(works, times, strict=True):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            work()
            events[1].record()
            events[1].synchronize()
            known.append(events[0].elapsed_time(events[1]))
    medians = [statistics.median(known[2:]) for known in times]
    return medians.index(min(medians))
