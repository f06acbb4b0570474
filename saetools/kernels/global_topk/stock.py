"""Selection over the whole batch in stock torch operations, keeping only candidates of each row chunk."""

import torch
from torch import Tensor

from saetools.kernels.score import Score

CHUNK_ELEMENTS = 1 << 22
"""Scores held at once."""


def global_topk(
    x_ND: Tensor, W_FD: Tensor, b_F: Tensor, n_kept: int, score: Score | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference. What is not among the n_kept best of its chunk is not among those of the batch."""
    N, F = len(x_ND), len(W_FD)
    chunk = max(1, CHUNK_ELEMENTS // max(F, 1))
    bound = x_ND.new_zeros(())
    places, scores, values = [], [], []
    for start in range(0, N, chunk):
        pre_CF = torch.addmm(b_F, x_ND[start : start + chunk], W_FD.T)
        score_CF = pre_CF if score is None else score.of(pre_CF, slice(start, start + chunk))
        flat = score_CF.reshape(-1)
        found = ((flat >= bound) & (flat > 0) | flat.isnan()).nonzero()[:, 0]
        if len(found) > n_kept:
            bound = flat[found].topk(n_kept).values[-1]  # NaN is the greatest
            found = found[~(flat[found] < bound)]
        places.append(found + start * F)
        scores.append(flat[found])
        values.append(pre_CF.reshape(-1)[found])
    place, value, candidate = torch.cat(places), torch.cat(values), torch.cat(scores)
    threshold = x_ND.new_zeros(())
    if len(candidate) >= n_kept:
        threshold = candidate.topk(n_kept).values[-1]
        bad = candidate.isnan()  # the greatest of all, and equal to each other
        kept = (candidate > threshold) | (bad & ~threshold.isnan())
        ties = ((candidate == threshold) | (bad & threshold.isnan())).nonzero()[:, 0]
        kept[ties[: n_kept - int(kept.sum())]] = True
        place, value = place[kept], value[kept]
    offsets_N1 = torch.nn.functional.pad(torch.bincount(place // max(F, 1), minlength=N).cumsum(0), (1, 0))
    return value, (place % max(F, 1)).int(), offsets_N1, threshold
