"""Choosing candidates by a bf16 product and rescoring them in float32, in compiled loops.

The bf16 scores are upper bounds U of the float32 values, and what is chosen is exactly the float32 top k. For row x,
feature (w, b), and x^, w^ rounded to bf16:

    <x, w> + b  <=  <x^, w^> + ||x - x^|| ||w|| + ||x^|| ||w - w^|| + b            (Cauchy-Schwarz)

The right side, plus a bound of what float32 sums can lose, is itself one bf16 product of rows that are a few columns
longer. Any k rescored values have a k-th largest, tau; a feature with U < tau cannot be among the k best. So: rescore
the best few by U, take tau, rescore whatever else reaches it. About 1.4 k features per row are rescored, and the
product is that of bf16. The bound and the certificate are our own.
"""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import inline, parallel, prange
from saetools.kernels.decode.cpu import dot_rows
from saetools.kernels.encode_topk.select import GROUPS, cut, emit, key_of
from saetools.kernels.workspace import Workspace

BLOCK = 16
"""Rows per task: the unit that threads share."""
EXTRA = 32
"""Columns added for the bound: 5 in use, the rest zero (matrix units work on 32 at a time)."""
LEAST = np.int16(-(2**15))
LEAST_NORMAL = np.float32(2.0**-126)
"""What a square, or a product of the matrix unit, that float32 cannot hold is less than."""
UP = np.float32(1.0 + 2.0**-7)
DOWN = np.float32(1.0 - 1.01 * 2.0**-8)
"""More, and less, than what bf16 rounding (relative error at most 2^-8) leaves of a positive number."""


@inline
def bf16_bits(v):
    """The bits of v rounded to the nearest bf16 (ties to even), as int16; NaN stays NaN."""
    b = np.float32(v).view(np.int32)
    if v != v:
        return np.int16(0x7FC0)
    return np.int16((b + np.int32(0x7FFF) + ((b >> np.int32(16)) & np.int32(1))) >> np.int32(16))


@inline
def bf16_value(bits):
    return np.int32(np.int32(bits) << np.int32(16)).view(np.float32)


@inline
def shorten(row, bits, out):
    """Round a row (and its bits, as int32) to bf16; returns bounds of ||row||, ||rounded|| and ||row - rounded||."""
    D = row.shape[0]
    whole, short, lost = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for d in range(D):
        b = bits[d]
        out[d] = np.int16((b + np.int32(0x7FFF) + ((b >> np.int32(16)) & np.int32(1))) >> np.int32(16))
    for d in range(D):
        v, s = row[d], bf16_value(out[d])
        whole += v * v
        short += s * s
        lost += (v - s) * (v - s)
    gone = np.float32(D) * LEAST_NORMAL
    return np.sqrt(whole + gone), np.sqrt(short + gone), np.sqrt(lost + gone)


@parallel
def shorten_rows(x, bits, out):
    """[bf16(x), ||x - x^||, ||x^||, 1, 1, 1, 0, ...], norms rounded up."""
    N, D = x.shape
    for task in prange((N + BLOCK - 1) // BLOCK):
        for n in range(task * BLOCK, min(N, (task + 1) * BLOCK)):
            _, short, lost = shorten(x[n], bits[n], out[n])
            out[n, D:] = np.int16(0)
            out[n, D] = bf16_bits(lost * UP)
            out[n, D + 1] = bf16_bits(short * UP)
            out[n, D + 2 : D + 5] = bf16_bits(np.float32(1.0))


@parallel
def shorten_features(W, bits, b, out):
    """[bf16(w), ||w||, ||w - w^|| + sums, b's two halves, what they lose, 0, ...], bounds rounded up.

    sums: four times what a float32 sum of D + EXTRA products of these rows can lose, for the sums here and rescored.
    """
    F, D = W.shape
    sums = np.float32(4.0 * (D + EXTRA) * 2.0**-23)
    for task in prange((F + BLOCK - 1) // BLOCK):
        for f in range(task * BLOCK, min(F, (task + 1) * BLOCK)):
            whole, _, lost = shorten(W[f], bits[f], out[f])
            high = bf16_bits(b[f])
            low = bf16_bits(b[f] - bf16_value(high))
            rest = abs(b[f] - bf16_value(high) - bf16_value(low)) + sums * abs(b[f])
            out[f, D:] = np.int16(0)
            out[f, D] = bf16_bits(whole * UP)
            out[f, D + 1] = bf16_bits((lost + sums * whole) * UP)
            out[f, D + 2], out[f, D + 3], out[f, D + 4] = high, low, bf16_bits(rest * UP)


def low_precision(x_ND: Tensor, W_FD: Tensor, b_F: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Rows and features in bf16 with the columns of the bound: their product is U."""
    (N, D), F = x_ND.shape, len(W_FD)
    low_W = workspace.get("encode.low_W", (F, D + EXTRA), torch.int16)
    low_x = workspace.get("encode.low_x", (N, D + EXTRA), torch.int16)
    with exclusive():
        shorten_features(W_FD.numpy(), W_FD.view(torch.int32).numpy(), b_F.numpy(), low_W.numpy())
        shorten_rows(x_ND.numpy(), x_ND.view(torch.int32).numpy(), low_x.numpy())
    return low_x.view(torch.bfloat16), low_W.view(torch.bfloat16)


@inline
def order16(v):
    """int16 keys in the order of bf16 values, given by their bits."""
    return np.int16(v ^ ((v >> np.int16(15)) & np.int16(0x7FFF)))


@inline
def screen_maxima(row, keys, least, m):
    """Keys of a row and their group maxima, as in `select.group_maxima`; returns whether all scores are finite."""
    F = row.shape[0]
    n = F // GROUPS
    for f in range(F):
        v = row[f]
        keys[f] = np.int16(v ^ ((v >> 15) & 0x7FFF))
    for j in range(n):
        least[j] = m[j] = keys[j]
    for i in range(1, GROUPS):
        part = keys[i * n : (i + 1) * n]
        for j in range(n):
            v = part[j]
            m[j] = v if v > m[j] else m[j]
            least[j] = v if v < least[j] else least[j]
    low, high = 0, 0
    for j in range(n):
        low, high = min(low, least[j]), max(high, m[j])
    for f in range(GROUPS * n, F):
        low, high = min(low, keys[f]), max(high, keys[f])
    return high < 0x7F80 and low > -0x7F81


@inline
def screen_bound(m, n, k):
    """The k-th largest of m[:n], by bisection."""
    lo, hi = np.int32(-(2**15)), np.int32(2**15 - 1)
    while lo < hi:
        mid = np.int16((lo + hi + 1) >> 1)
        c = np.int32(0)
        for j in range(n):
            c += np.int32(m[j] >= mid)
        if c >= k:
            lo = np.int32(mid)
            if c == k:
                break
        else:
            hi = np.int32(mid) - 1
    return np.int16(lo)


@inline
def screen_collect(keys, m, low, high, groups, found, c):
    """Append every index whose key lies in low .. high; returns the new count."""
    F = keys.shape[0]
    n = F // GROUPS
    n_groups = 0
    for j in range(n):
        groups[n_groups] = j
        n_groups += np.int32(m[j] >= low)
    for q in range(n_groups):
        j = groups[q]
        for i in range(GROUPS):
            key = keys[i * n + j]
            found[c] = i * n + j
            c += np.int32((key >= low) & (key <= high))
    for j in range(GROUPS * n, F):
        found[c] = j
        c += np.int32((keys[j] >= low) & (keys[j] <= high))
    return c


@inline
def rescore(x, W, b, found, scores, start, stop):
    """scores = <x, W[found]> + b[found]."""
    dot_rows(x, found, start, stop, W, scores)
    for q in range(start, stop):
        scores[q] += b[found[q]]


@inline
def kth_score(scores, keys, found, c, k):
    """The k-th largest of c >= k scores, or a little less."""
    least = scores[0]
    for j in range(c):
        keys[j] = key_of(scores[j])
        least = min(least, scores[j])
    if c == k:
        return least
    threshold, _ = cut(keys, found, c, k)
    return np.int32(threshold ^ ((threshold >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@inline
def least_reach(tau):
    """The least key that U of a score of at least tau can have: U itself was rounded to bf16."""
    lowered = np.float32(tau * (DOWN if tau > 0 else UP))
    key = order16(np.int16(lowered.view(np.int32) >> np.int32(16)))
    return np.int16(key - 1) if lowered < 0 else key


@inline
def screen_block(pre, x, W, b, k, relu, first, values, indices):
    """`screen_rows` for a few rows, on one thread."""
    C, F = pre.shape
    n = F // GROUPS
    m, least, keys16 = np.empty(n, np.int16), np.empty(n, np.int16), np.empty(F, np.int16)
    groups = np.empty(n + 1, np.int32)
    found, scores = np.empty(F + 1, np.int32), np.empty(F + 1, np.float32)
    keys = np.empty(F + 1, np.int32)
    for r in range(C):
        finite = screen_maxima(pre[r], keys16, least, m)
        bound = screen_bound(m, n, k) if n >= k and finite else LEAST
        c = screen_collect(keys16, m, bound, np.int16(2**15 - 1), groups, found, 0)
        rescore(x[r], W, b, found, scores, 0, c)
        if bound > LEAST:
            tau = kth_score(scores, keys, found, c, k)
            if relu:
                tau = max(tau, np.float32(0.0))
            reach = least_reach(tau)
            if reach < bound:
                more = screen_collect(keys16, m, reach, np.int16(bound - 1), groups, found, c)
                rescore(x[r], W, b, found, scores, c, more)
                c = more
        emit(scores, keys, found, c, k, relu, first, values[r], indices[r])


@parallel
def screen_rows(pre, x, W, b, k, relu, first, values, indices):
    """The k best by float32 products of x and W, candidates by pre [C, F], the int16 view of the bf16 bounds.

    A row with a score that is not finite cannot be ordered: it is rescored whole.
    """
    C = pre.shape[0]
    for task in prange((C + BLOCK - 1) // BLOCK):
        some = slice(task * BLOCK, min(C, (task + 1) * BLOCK))
        screen_block(pre[some], x[some], W, b, k, relu, first, values[some], indices[some])
