"""Selection per feature in compiled loops: `encode_topk`'s selector on rows of the transposed product."""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import parallel, prange
from saetools.kernels.encode_topk.cpu import BLOCK, take_all
from saetools.kernels.encode_topk.select import GROUPS, collect, emit, group_maxima, lower_bound
from saetools.kernels.per_feature_topm.stock import count_reached, row_major
from saetools.kernels.score import Score
from saetools.kernels.workspace import Workspace

CHUNK_ELEMENTS = 1 << 22
"""Scores held at once."""


@parallel
def select_features(score, no_bias, budget, starts, rows, scores_out):
    """The budget[r] largest positive scores of each row r of score [C, N], from slot starts[r] on; unused slots: 0."""
    C, N = score.shape
    for task in prange((C + BLOCK - 1) // BLOCK):
        m = np.empty(N, np.float32)
        groups = np.empty(N + 1, np.int32)
        found, scores = np.empty(N + 1, np.int32), np.empty(N + 1, np.float32)
        keys = np.empty(N + 1, np.int32)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            k = budget[r]
            if k == 0:
                continue
            row = score[r]
            n = N // GROUPS
            if not np.isfinite(group_maxima(row, no_bias, m)):
                c = take_all(row, no_bias, found, scores)
            else:
                bound = lower_bound(m, n, k, np.float32(np.inf)) if n >= k else np.float32(-np.inf)
                c = collect(row, no_bias, m, max(bound, np.float32(1e-45)), groups, found, scores)
            out = slice(starts[r], starts[r] + k)
            emit(scores, keys, found, c, k, True, 0, scores_out[out], rows[out])


def per_feature_topm(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    budget_F: Tensor,
    score: Score | None,
    counted: tuple[Tensor | None, Tensor | None],
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    N, F = len(x_ND), len(W_FD)
    ends_F = budget_F.cumsum(0)
    n_slots = int(ends_F[-1]) if F else 0
    rows_M, scores_M = torch.empty(n_slots, dtype=torch.int32), torch.empty(n_slots)
    values_M = scores_M if score is None else torch.empty(n_slots)
    starts_F = ends_F - budget_F
    features_M = torch.arange(F).repeat_interleave(budget_F)
    chunk, no_bias = max(1, CHUNK_ELEMENTS // max(N, 1)), np.zeros(N, np.float32)
    for start in range(0, F, chunk):
        part = slice(start, start + chunk)
        W_CD = W_FD[part]
        pre_CN = workspace.get("per_feature.pre", (len(W_CD), N))
        torch.mm(W_CD, x_ND.T, out=pre_CN).add_(b_F[part, None])
        count_reached(pre_CN, counted, part)
        score_CN = pre_CN if score is None else score.of(pre_CN.T, slice(None), part).T.contiguous()
        with exclusive():
            select_features(
                *(
                    score_CN.numpy(),
                    no_bias,
                    budget_F[part].numpy(),
                    starts_F[part].numpy(),
                    rows_M.numpy(),
                    scores_M.numpy(),
                )
            )
        if score is not None and len(W_CD):
            slots = slice(int(starts_F[part][0]), int(ends_F[part][-1]))
            values_M[slots] = pre_CN[features_M[slots] - start, rows_M[slots].long()]
    used = scores_M != 0
    return row_major(values_M[used], features_M[used], rows_M[used], N, "numba")
