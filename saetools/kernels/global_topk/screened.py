"""Selection over the whole batch by bf16 upper bounds, candidates rescored in float32; in compiled loops.

The bound is that of `encode_topk/screen.py`: U >= pre. If n_kept scores of the batch are known to reach t, whatever
is kept reaches t too, so that only features with U >= t need a float32 score. t is the caller's guess (checked in
the end), or comes from the first chunk of rows: its n_kept best by U are rescored, and t is the least of these; where
they do not tell, t is 0, since only positive scores are kept. Every way gives the same bits: scores are of `rescore`
in all of them, and a resumed run, which has no guess, goes on as if it had one.
"""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import inline, parallel, prange, serial
from saetools.kernels.encode_topk.cpu import CHUNK_ROWS
from saetools.kernels.encode_topk.screen import (
    BLOCK,
    LEAST,
    least_reach,
    low_precision,
    rescore,
    screen_collect,
    screen_maxima,
)
from saetools.kernels.encode_topk.select import GROUPS
from saetools.kernels.workspace import Workspace

TOP = np.int16(2**15 - 1)


@serial
def reach_of(score):
    """The least key that U of a score of at least `score` can have."""
    return least_reach(score)


@parallel
def bound_maxima(pre, maxima, counts, reach):
    """Group maxima of the keys of each row, and how many keys reach `reach`; F where a row is not finite."""
    C, F = pre.shape
    for task in prange((C + BLOCK - 1) // BLOCK):
        keys, least = np.empty(F, np.int16), np.empty(F // GROUPS, np.int16)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            finite = screen_maxima(pre[r], keys, least, maxima[r])
            c = np.int64(0)
            for f in range(F):
                c += np.int64(keys[f] >= reach)
            counts[r] = c if finite else F


@inline
def row_candidates(pre, x, W, b, m, everything, reach, keys, least, groups, found, scores):
    """Candidates of one row and their float32 scores; returns how many."""
    screen_maxima(pre, keys, least, m)
    c = screen_collect(keys, m, LEAST if everything else reach, TOP, groups, found, 0)
    rescore(x, W, b, found, scores, 0, c)
    return c


@parallel
def rescored_candidates(pre, x, W, b, counts, starts, reach, out_found, out_scores):
    """Features and scores of the candidates of each row, from slot starts[r] on."""
    C, F = pre.shape
    for task in prange((C + BLOCK - 1) // BLOCK):
        keys, m, least = np.empty(F, np.int16), np.empty(F // GROUPS, np.int16), np.empty(F // GROUPS, np.int16)
        groups = np.empty(F // GROUPS + 1, np.int32)
        found, scores = np.empty(F + 1, np.int32), np.empty(F + 1, np.float32)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            row_candidates(pre[r], x[r], W, b, m, counts[r] == F, reach, keys, least, groups, found, scores)
            for j in range(counts[r]):
                out_found[starts[r] + j], out_scores[starts[r] + j] = found[j], scores[j]


def candidates(
    x_ND: Tensor, W_FD: Tensor, b_F: Tensor, n_kept: int, guess: float, workspace: Workspace
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Features and float32 scores of all that can be kept, in row order, and how many each row has.

    None where the guess was too high; without one (0) never.
    """
    F = len(W_FD)
    low_x, low_W = low_precision(x_ND, W_FD, b_F, workspace)
    found, scores, counts = [], [], []
    least = np.float32(guess)
    for start in range(0, len(x_ND), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        U_CF = workspace.get("encode.low_pre", (len(low_x[rows]), F), torch.bfloat16)
        torch.mm(low_x[rows], low_W.T, out=U_CF)
        chunk = _Chunk(U_CF, x_ND[rows], W_FD, b_F)
        if start == 0 and guess <= 0:
            least = max(chunk.least_of_best(n_kept), np.float32(0.0))
        part = chunk.rescored(np.int16(reach_of(least)))
        found.append(part[0])
        scores.append(part[1])
        counts.append(part[2])
    parts = np.concatenate(found), np.concatenate(scores), np.concatenate(counts)
    if least == 0:
        return _positive(*parts)
    return parts if np.count_nonzero(~(parts[1] < least)) >= n_kept else None


def _positive(found: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Without the candidates whose score is not positive; those of NaN stay."""
    stay = ~(scores <= 0)
    rows = np.repeat(np.arange(len(counts)), counts)
    return found[stay], scores[stay], np.bincount(rows[stay], minlength=len(counts))


class _Chunk:
    """A few rows and their bounds."""

    def __init__(self, U_CF: Tensor, x_CD: Tensor, W_FD: Tensor, b_F: Tensor) -> None:
        self.U = U_CF.view(torch.int16).numpy()
        self.x, self.W, self.b = x_CD.numpy(), W_FD.numpy(), b_F.numpy()

    def rescored(self, reach: np.int16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features and scores with U >= reach, in row order, and how many each row has."""
        C, F = self.U.shape
        counts = np.empty(C, np.int64)
        with exclusive():
            bound_maxima(self.U, np.empty((C, F // GROUPS), np.int16), counts, reach)
            starts = np.cumsum(counts) - counts
            found, scores = np.empty(counts.sum(), np.int32), np.empty(counts.sum(), np.float32)
            rescored_candidates(self.U, self.x, self.W, self.b, counts, starts, reach, found, scores)
        return found, scores, counts

    def least_of_best(self, n_kept: int) -> np.float32:
        """A score that n_kept features of these rows reach, hardly lower than need be; 0 where there is none."""
        C, F = self.U.shape
        maxima, counts = np.empty((C, F // GROUPS), np.int16), np.empty(C, np.int64)
        if n_kept > self.U.size:
            return np.float32(0.0)
        with exclusive():
            bound_maxima(self.U, maxima, counts, TOP)
        if (counts == F).any():
            return np.float32(0.0)
        keys = maxima if n_kept <= maxima.size else self.U ^ ((self.U >> 15) & TOP)
        reach = np.partition(keys.reshape(-1), keys.size - n_kept)[keys.size - n_kept]
        _, scores, _ = self.rescored(np.int16(reach))
        return np.float32(np.partition(scores, len(scores) - n_kept)[len(scores) - n_kept])
