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
def select_features(score, bias, budget, starts, threshold, reached, rows, scores_out):
    """The budget[r] largest positive scores of each row r of score + bias, [C, N], from slot starts[r] on; unused: 0.

    reached[r]: how many of them are positive and reach threshold[r], where there are thresholds.
    """
    C, N = score.shape
    counts = threshold.shape[0] > 0
    for task in prange((C + BLOCK - 1) // BLOCK):
        m = np.empty(N, np.float32)
        groups = np.empty(N + 1, np.int32)
        found, scores = np.empty(N + 1, np.int32), np.empty(N + 1, np.float32)
        keys, b = np.empty(N + 1, np.int32), np.empty(N, np.float32)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            row, k, own = score[r], budget[r], bias[r]
            if counts:
                least, n_reached = threshold[r], np.int32(0)
                for j in range(N):
                    v = row[j] + own
                    n_reached += np.int32((v >= least) & (v > np.float32(0.0)))
                reached[r] = n_reached
            if k == 0:
                continue
            for j in range(N):
                b[j] = own
            n = N // GROUPS
            if not np.isfinite(group_maxima(row, b, m)):
                c = take_all(row, b, found, scores)
            else:
                bound = lower_bound(m, n, k, np.float32(np.inf)) if n >= k else np.float32(-np.inf)
                c = collect(row, b, m, max(bound, np.float32(1e-45)), groups, found, scores)
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
    rows_M = torch.empty(n_slots, dtype=torch.int32, device="cpu")
    scores_M = torch.empty(n_slots, dtype=torch.float32, device="cpu")
    values_M = scores_M if score is None else torch.empty(n_slots, dtype=torch.float32, device="cpu")
    starts_F = ends_F - budget_F
    features_M = torch.arange(F, device="cpu").repeat_interleave(budget_F)
    chunk = max(1, CHUNK_ELEMENTS // max(N, 1))
    none = np.empty(0, np.float32), np.empty(0, np.int64)
    for start in range(0, F, chunk):
        part = slice(start, start + chunk)
        W_CD, bias_C = W_FD[part], b_F[part]
        pre_CN = workspace.get("per_feature.pre", (len(W_CD), N))
        torch.mm(W_CD, x_ND.T, out=pre_CN)  # the bias is added where the rows are read
        score_CN, counting = pre_CN, none
        if score is not None:
            pre_CN.add_(bias_C[:, None])
            count_reached(pre_CN, counted, part)
            score_CN, bias_C = score.of(pre_CN.T, slice(None), part).T.contiguous(), torch.zeros_like(bias_C)
        elif counted[0] is not None and counted[1] is not None:
            counting = counted[0][part].numpy(), counted[1][part].numpy()
        with exclusive():
            select_features(
                *(score_CN.numpy(), bias_C.numpy(), budget_F[part].numpy(), starts_F[part].numpy(), *counting),
                *(rows_M.numpy(), scores_M.numpy()),
            )
        if score is not None and len(W_CD):
            slots = slice(int(starts_F[part][0]), int(ends_F[part][-1]))
            values_M[slots] = pre_CN[features_M[slots] - start, rows_M[slots].long()]
    used = scores_M != 0
    return row_major(values_M[used], features_M[used], rows_M[used], N, "numba")
