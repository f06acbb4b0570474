"""Exact selection of the k largest of a row, in compiled loops.

Stage 1: the row is cut into G strided groups of n = F // G; the k largest elements lie in the k groups with the
largest maxima, so a threshold that at least k group maxima reach is a lower bound of the k-th largest element.
Stage 2: the few elements that reach it (about k + 3 for k = 32, F = 8192) are collected, and the cut among them is
found by bisecting integer keys, then, among equal keys, by bisecting the index. All loops are counts, maxima and
branch-free appends, which the compiler turns into vector code; no step depends on the order of elements.
"""

import numpy as np

from saetools.kernels.compiled import inline

KEY_NAN = np.int32(2**31 - 1)
GROUPS = 16
"""G; a constant, so that the loops over it unroll."""


@inline
def key_of(v):
    """int32 keys in the order of float32 values; NaN of either sign is the greatest, -0.0 equals 0.0."""
    if v != v:
        return KEY_NAN
    if v == 0:
        return np.int32(0)
    b = np.float32(v).view(np.int32)
    return b ^ ((b >> np.int32(31)) & np.int32(0x7FFFFFFF))


@inline
def group_maxima(row, b, m):
    """m[j] = max over i of (row + b)[i * n + j], n = F // G; returns the sum of row + b: finite if every element is."""
    n = row.shape[0] // GROUPS
    total = np.float32(0.0)
    for j in range(n):
        m[j] = row[j] + b[j]
        total += m[j]
    for i in range(1, GROUPS):
        part, part_b = row[i * n : (i + 1) * n], b[i * n : (i + 1) * n]
        for j in range(n):
            v = part[j] + part_b[j]
            m[j] = v if v > m[j] else m[j]
            total += v
    for j in range(GROUPS * n, row.shape[0]):
        total += row[j] + b[j]
    return total


@inline
def count_at_least(m, n, t):
    c = np.int32(0)
    for j in range(n):
        c += np.int32(m[j] >= t)
    return c


@inline
def lower_bound(m, n, k, start):
    """A threshold that at least k, and hardly more, of m[:n] reach; `start` is a guess (the last row's)."""
    lo = hi = m[0]
    for j in range(n):
        v = m[j]
        lo = v if v < lo else lo
        hi = v if v > hi else hi
    t = start
    for _ in range(24):
        if not (lo < t < hi):
            t = lo + (hi - lo) * np.float32(0.5)
            if not (lo < t < hi):
                break
        c = count_at_least(m, n, t)
        if c >= k:
            lo = t
            if c <= k + 4:
                break
        else:
            hi = t
        t = lo + (hi - lo) * np.float32(0.5)
    return lo


@inline
def collect(row, b, m, bound, groups, found, scores):
    """Append every index whose row + b reaches `bound`; returns how many."""
    n = row.shape[0] // GROUPS
    n_groups = 0
    for j in range(n):
        groups[n_groups] = j
        n_groups += np.int32(m[j] >= bound)
    c = 0
    for q in range(n_groups):
        j = groups[q]
        for i in range(GROUPS):
            v = row[i * n + j] + b[i * n + j]
            found[c] = i * n + j
            scores[c] = v
            c += np.int32(v >= bound)
    for j in range(GROUPS * n, row.shape[0]):
        v = row[j] + b[j]
        found[c] = j
        scores[c] = v
        c += np.int32(v >= bound)
    return c


@inline
def cut(keys, found, c, k):
    """(key, index): the k best of c > k candidates are those with a greater key, or an equal key and index <= index."""
    lo, hi = np.int64(keys[0]), np.int64(keys[0])
    for j in range(c):
        v = np.int64(keys[j])
        lo = v if v < lo else lo
        hi = v if v > hi else hi
    n_at_lo = np.int64(c)
    while lo < hi:  # at least k keys are >= lo, fewer than k are > hi
        mid = lo + (hi - lo + 1) // 2
        t = np.int32(mid)
        n_mid = np.int32(0)
        for j in range(c):
            n_mid += np.int32(keys[j] >= t)
        if n_mid >= k:
            lo, n_at_lo = mid, np.int64(n_mid)
            if n_mid == k:
                break
        else:
            hi = mid - 1
    threshold = np.int32(lo)
    last = np.int32(2**31 - 1)
    if n_at_lo > k:
        above = np.int32(0)
        for j in range(c):
            above += np.int32(keys[j] > threshold)
        need = k - above
        ilo, ihi = np.int64(0), np.int64(2**31 - 1)
        while ilo < ihi:  # the least index such that `need` ties lie at or before it
            mid = (ilo + ihi) // 2
            n_ties = np.int32(0)
            for j in range(c):
                n_ties += np.int32((keys[j] == threshold) & (found[j] <= mid))
            if n_ties >= need:
                ihi = mid
            else:
                ilo = mid + 1
        last = np.int32(ilo)
    return threshold, last


@inline
def emit(scores, keys, found, c, k, relu, first, values, indices):
    """Write the k best of c candidates; what ReLU zeroes, and slots left over, become (0, 0)."""
    out = 0
    if c > k:
        for j in range(c):
            keys[j] = key_of(scores[j])
        threshold, last = cut(keys, found, c, k)
        for j in range(c):
            if keys[j] > threshold or (keys[j] == threshold and found[j] <= last):
                scores[out] = scores[j]
                found[out] = found[j]
                out += 1
    else:
        out = c
    for j in range(k):
        unused = j >= out or (relu and scores[j] <= np.float32(0.0))
        values[j] = np.float32(0.0) if unused else scores[j]
        indices[j] = np.int32(0) if unused else np.int32(found[j] + first)
