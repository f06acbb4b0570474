"""Matching pursuit by bf16 products of the residual, its choices certified in float32; in compiled loops.

|<r, w> - <r^, w^>| <= slack = ||r - r^|| max ||w|| + ||r^|| max ||w - w^|| + what float32 sums can lose, for r, w
rounded to bf16. The best atom by bf16 scores is rescored in float32: tau. Only atoms whose bf16 score reaches
tau - slack can be better; these few are rescored, and the best of them is the exact choice. See
`encode_topk/screen.py`, where the bound is per feature; atoms have unit norm, so that one number serves here.
"""

import numpy as np

from saetools.kernels.compiled import inline, parallel, prange
from saetools.kernels.encode_topk.screen import (
    BLOCK,
    least_reach,
    rescore,
    screen_collect,
    shorten,
)
from saetools.kernels.encode_topk.select import GROUPS

TOP = np.int16(2**15 - 1)
TAKEN = np.int16(-(2**15))


@parallel
def shorten_plain(rows, bits, out, whole, short, lost):
    """bf16 rows, and for each the norms of the row, of the rounded row and of their difference."""
    N = rows.shape[0]
    for task in prange((N + BLOCK - 1) // BLOCK):
        for n in range(task * BLOCK, min(N, (task + 1) * BLOCK)):
            whole[n], short[n], lost[n] = shorten(rows[n], bits[n], out[n])


@inline
def atom_keys(row, absolute, taken, keys, m):
    """Keys in the order of the scores, -2^15 for taken atoms, and their group maxima; returns the greatest."""
    F = row.shape[0]
    n = F // GROUPS
    if absolute:
        for f in range(F):
            keys[f] = np.int16(row[f] & 0x7FFF)
    else:
        for f in range(F):
            v = row[f]
            keys[f] = np.int16(v ^ ((v >> 15) & 0x7FFF))
    for u in range(taken.shape[0]):
        keys[taken[u]] = TAKEN
    for j in range(n):
        m[j] = keys[j]
    for i in range(1, GROUPS):
        part = keys[i * n : (i + 1) * n]
        for j in range(n):
            v = part[j]
            m[j] = v if v > m[j] else m[j]
    best = TAKEN
    for j in range(n):
        best = max(best, m[j])
    for f in range(GROUPS * n, F):
        best = max(best, keys[f])
    return best


@inline
def best_score(found, scores, start, stop, absolute, i, best):
    """The best of scores[start:stop] and (i, best), the lowest atom of equals; NaN is best."""
    for q in range(start, stop):
        s = abs(scores[q]) if absolute else scores[q]
        if s > best or s != s or (s == best and found[q] < i):
            i, best = np.int64(found[q]), s
            if s != s:
                break
    return i, best


@inline
def choose(row, x, W, no_bias, slack, absolute, taken, keys, m, groups, found, scores):
    """(atom, score) with the greatest float32 score; atom F where none is left."""
    F = row.shape[0]
    top = atom_keys(row, absolute, taken, keys, m)
    i, best = np.int64(F), np.float32(-np.inf)
    if top == TAKEN:
        return i, best
    finite = top < 0x7F80
    low = top if finite else np.int16(TAKEN + 1)
    c = screen_collect(keys, m, low, TOP, groups, found, 0)
    rescore(x, W, no_bias, found, scores, 0, c)
    i, best = best_score(found, scores, 0, c, absolute, i, best)
    if not finite or best != best:
        return i, best
    reach = least_reach(np.float32(best - slack))
    if absolute:
        reach = max(reach, np.int16(0))
    reach = max(reach, np.int16(TAKEN + 1))
    if reach < low:
        more = screen_collect(keys, m, reach, np.int16(low - 1), groups, found, c)
        rescore(x, W, no_bias, found, scores, c, more)
        i, best = best_score(found, scores, c, more, absolute, i, best)
    return i, best


@parallel
def screened_step(score, W, no_bias, slacks, t, absolute, nonnegative, tolerance, reselect, going, values, indices,
                  residual):  # fmt: skip
    """Step t of rows whose bf16 scores are `score` (int16 bits)."""
    C, F = score.shape
    D = W.shape[1]
    for task in prange((C + BLOCK - 1) // BLOCK):
        m, keys = np.empty(F // GROUPS, np.int16), np.empty(F, np.int16)
        groups = np.empty(F // GROUPS + 1, np.int32)
        found, scores = np.empty(F + 1, np.int32), np.empty(F + 1, np.float32)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            if not going[r]:
                continue
            left = residual[r]
            energy = np.float32(0.0)
            for d in range(D):
                energy += left[d] * left[d]
            if energy <= tolerance * tolerance:
                going[r] = False
                continue
            taken = indices[r, :0] if reselect else indices[r, :t]
            i, best = choose(score[r], left, W, no_bias, slacks[r], absolute, taken, keys, m, groups, found, scores)
            if i == F or ((absolute or nonnegative) and best <= 0):
                going[r] = False
                continue
            w, v = W[i], np.float32(0.0)
            for d in range(D):
                v += left[d] * w[d]
            values[r, t], indices[r, t] = v, i
            for d in range(D):
                left[d] -= v * w[d]
