"""Selection over the whole batch in compiled loops: one pass, keeping only candidates of each row chunk.

A bound that at least n_kept scores of the batch are known to reach (or the last batch's threshold, lowered, as a
guess) lets all but a few candidates of a row be passed over by its group maxima. The cut is found among candidates.
"""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import inline, parallel, prange, serial
from saetools.kernels.encode_topk.cpu import BLOCK, CHUNK_ROWS
from saetools.kernels.encode_topk.select import GROUPS, collect, group_maxima
from saetools.kernels.global_topk import screened
from saetools.kernels.score import Score
from saetools.kernels.workspace import Workspace

TINY = np.float32(1e-45)


@parallel
def row_maxima(score, b, maxima, finite):
    """Group maxima of each row, and whether all its scores are finite."""
    C = score.shape[0]
    for task in prange((C + BLOCK - 1) // BLOCK):
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            finite[r] = np.isfinite(group_maxima(score[r], b, maxima[r]))


@inline
def collect_row(row, b, m, finite, bound, groups, found, scores):
    """Candidates of a row; of one that is not finite, every positive score and every NaN."""
    if finite:
        return collect(row, b, m, bound, groups, found, scores)
    c = 0
    for f in range(row.shape[0]):
        v = row[f] + b[f]
        if v >= bound or v != v:
            found[c], scores[c] = f, v
            c += 1
    return c


@parallel
def count_candidates(score, b, maxima, finite, bound, counts):
    C, F = score.shape
    n = F // GROUPS
    for task in prange((C + BLOCK - 1) // BLOCK):
        groups = np.empty(n + 1, np.int32)
        found, scores = np.empty(F + 1, np.int32), np.empty(F + 1, np.float32)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            counts[r] = collect_row(score[r], b, maxima[r], finite[r], bound, groups, found, scores)


@parallel
def take_candidates(score, b, maxima, finite, bound, starts, out_found, out_scores):
    C, F = score.shape
    n = F // GROUPS
    for task in prange((C + BLOCK - 1) // BLOCK):
        groups = np.empty(n + 1, np.int32)
        found, scores = np.empty(F + 1, np.int32), np.empty(F + 1, np.float32)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            c = collect_row(score[r], b, maxima[r], finite[r], bound, groups, found, scores)
            for j in range(c):
                out_found[starts[r] + j], out_scores[starts[r] + j] = found[j], scores[j]


@inline
def is_above(score, threshold):
    """Whether a score is greater, NaN being the greatest of all."""
    return threshold == threshold and not (score <= threshold)


@inline
def is_tied(score, threshold):
    return score == threshold or (threshold != threshold and score != score)


@serial
def share_out(scores, starts, threshold, n_kept, n_ties, offsets):
    """Offsets of the kept slots of each row, and how many scores equal to the threshold it keeps: first rows first."""
    N = starts.shape[0] - 1
    left = n_kept
    for r in range(N):
        n_ties[r] = 0
        above = 0
        for s in range(starts[r], starts[r + 1]):
            above += is_above(scores[s], threshold)
            n_ties[r] += is_tied(scores[s], threshold)
        offsets[r + 1] = above
        left -= above
    for r in range(N):
        n_ties[r] = min(n_ties[r], left)
        left -= n_ties[r]
        offsets[r + 1] += offsets[r] + n_ties[r]


@parallel
def keep(found, scores, values, starts, threshold, n_ties, offsets, out_values, out_indices, first):
    """The kept slots of each row, features ascending."""
    N = starts.shape[0] - 1
    for task in prange((N + BLOCK - 1) // BLOCK):
        for r in range(task * BLOCK, min(N, (task + 1) * BLOCK)):
            lo, c = starts[r], starts[r + 1] - starts[r]
            order = np.argsort(found[lo : lo + c])
            ties, out = n_ties[r], offsets[r]
            for j in range(c):
                s = lo + order[j]
                tie = is_tied(scores[s], threshold)
                if (tie and ties > 0) or is_above(scores[s], threshold):
                    ties -= tie
                    out_values[out], out_indices[out] = values[s], found[s] + first
                    out += 1


def global_topk(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    n_kept: int,
    score: Score | None,
    guess: float,
    first: int,
    screen: bool,
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference. `guess` > 0: a bound to try; too high a guess costs a second pass."""
    if screen and score is None and len(W_FD) >= GROUPS:
        rescored = screened.candidates(x_ND, W_FD, b_F, n_kept, guess, workspace) if guess > 0 else None
        rescored = rescored or screened.candidates(x_ND, W_FD, b_F, n_kept, 0.0, workspace)
        assert rescored is not None, "without a guess there is none that is too high"
        found, scores, counts = rescored
        return _kept(len(x_ND), n_kept, first, found, scores, scores, counts)
    bound = max(np.float32(guess), TINY) if guess > 0 else TINY  # NaN is no guess
    found, scores, values, counts = _candidates(x_ND, W_FD, b_F, n_kept, score, bound, not guess > 0, workspace)
    if guess > 0 and len(found) < n_kept:
        found, scores, values, counts = _candidates(x_ND, W_FD, b_F, n_kept, score, TINY, True, workspace)
    return _kept(len(x_ND), n_kept, first, found, scores, values, counts)


def _kept(
    N: int, n_kept: int, first: int, found: np.ndarray, scores: np.ndarray, values: np.ndarray, counts: np.ndarray
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The n_kept best of all candidates."""
    threshold = np.float32(0.0)
    if len(found) >= n_kept:
        threshold = np.partition(scores, len(scores) - n_kept)[len(scores) - n_kept]
    starts, offsets = np.zeros(N + 1, np.int64), np.zeros(N + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    with exclusive():
        n_ties = np.empty(N, np.int64)
        share_out(scores, starts, threshold, min(n_kept, len(found)), n_ties, offsets)
        out_values, out_indices = np.empty(offsets[N], np.float32), np.empty(offsets[N], np.int32)
        keep(found, scores, values, starts, threshold, n_ties, offsets, out_values, out_indices, first)
    as_tensors = [torch.from_numpy(a) for a in (out_values, out_indices, offsets)]
    return as_tensors[0], as_tensors[1], as_tensors[2], torch.tensor(threshold, dtype=torch.float32, device="cpu")


def _candidates(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    n_kept: int,
    score: Score | None,
    bound: np.float32,
    raise_bound: bool,
    workspace: Workspace,
) -> tuple[np.ndarray, ...]:
    """Features, scores and values of all candidates in row order, and how many each row has.

    `raise_bound`: in each chunk the n_kept-th largest group maximum is a score that n_kept of the batch reach.
    """
    F, n = len(W_FD), len(W_FD) // GROUPS
    all_found, all_scores, all_values, all_counts = [], [], [], []
    for start in range(0, len(x_ND), CHUNK_ROWS):
        x_CD = x_ND[start : start + CHUNK_ROWS]
        C = len(x_CD)
        pre_CF, b = torch.mm(x_CD, W_FD.T, out=workspace.get("global.pre", (C, F))), b_F.numpy()
        if score is not None:
            pre_CF, b = pre_CF.add_(b_F), np.zeros(F, np.float32)
        score_CF = pre_CF if score is None else score.of(pre_CF, slice(start, start + CHUNK_ROWS))
        maxima = workspace.get("global.maxima", (C, n)).numpy()
        finite, counts = np.empty(C, np.bool_), np.empty(C, np.int64)
        with exclusive():
            row_maxima(score_CF.numpy(), b, maxima, finite)
            if raise_bound and n_kept <= maxima.size and finite.all():
                reached = np.partition(maxima.reshape(-1), maxima.size - n_kept)[maxima.size - n_kept]
                bound = max(bound, reached)
            count_candidates(score_CF.numpy(), b, maxima, finite, bound, counts)
            starts = np.cumsum(counts) - counts
            found, scores = np.empty(counts.sum(), np.int32), np.empty(counts.sum(), np.float32)
            take_candidates(score_CF.numpy(), b, maxima, finite, bound, starts, found, scores)
        values = scores
        if score is not None:
            rows = np.repeat(np.arange(C), counts)
            values = pre_CF.numpy()[rows, found]
        all_found.append(found)
        all_scores.append(scores)
        all_values.append(values)
        all_counts.append(counts)
    return tuple(np.concatenate(parts) for parts in (all_found, all_scores, all_values, all_counts))
