"""Selection per feature in stock torch operations, on the transposed product, chunk of features by chunk."""

import torch
from torch import Tensor

from saetools.kernels.backend import Impl
from saetools.kernels.by_feature import by_feature
from saetools.kernels.score import Score

CHUNK_ELEMENTS = 1 << 22
"""Scores held at once."""


def per_feature_topm(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    budget_F: Tensor,
    score: Score | None,
    counted: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    N, F = len(x_ND), len(W_FD)
    chunk = max(1, CHUNK_ELEMENTS // max(N, 1))
    rows, features, values = [], [], []
    for start in range(0, F, chunk):
        part = slice(start, start + chunk)
        pre_CN = torch.addmm(b_F[part, None], W_FD[part], x_ND.T)
        count_reached(pre_CN, counted, part)
        score_CN = pre_CN if score is None else score.of(pre_CN.T, slice(None), part).T
        budget_C = budget_F[part]
        # a stable sort: the first of equal scores wins; NaN comes first and is kept
        ordered, places = torch.sort(score_CN, dim=1, descending=True, stable=True)
        most = int(budget_C.max()) if len(budget_C) else 0
        ordered, places = ordered[:, :most], places[:, :most]
        taken = (torch.arange(most, device=x_ND.device) < budget_C[:, None]) & ~(ordered <= 0)
        own, slot = taken.nonzero(as_tuple=True)
        rows.append(places[own, slot])
        features.append(own + start)
        values.append(pre_CN[own, rows[-1]])
    return row_major(torch.cat(values), torch.cat(features), torch.cat(rows), N, "torch")


def count_reached(pre_CN: Tensor, counted: tuple[Tensor | None, Tensor | None], part: slice) -> None:
    """Write how many pre of each feature are positive and reach its threshold, where (threshold, counts) are given."""
    threshold_F, reached_F = counted
    if threshold_F is not None and reached_F is not None:
        reached_F[part] = ((pre_CN >= threshold_F[part, None]) & (pre_CN > 0)).sum(1)


def row_major(
    values_M: Tensor, features_M: Tensor, rows_M: Tensor, n_rows: int, impl: Impl
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots in feature order turned to row order, features ascending."""
    offsets_N1, slots = by_feature(torch.ones_like(values_M), rows_M.int(), n_rows, impl=impl)
    places = slots.long()
    return values_M[places], features_M[places].int(), offsets_N1.long()
