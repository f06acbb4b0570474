"""Encode and select per feature (feature choice): each feature keeps its own number of rows."""

import torch
from torch import Tensor

from saetools.kernels.backend import Impl, check_shapes, operation, resolve
from saetools.kernels.per_feature_topm import reference, stock
from saetools.kernels.score import Score
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace

TRITON_MAX_ROWS = 16_384
"""Rows whose scores a Triton program can hold."""


@torch.no_grad()
@operation
def per_feature_topm(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    budget_F: Tensor,
    *,
    score: Score | None = None,
    threshold_F: Tensor | None = None,
    first_feature: int = 0,
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> tuple[Sparse, Tensor | None]:
    """The ragged code in which feature i is kept in the budget[i] rows where its score is largest.

    pre = x W^T + b; scores are pre itself or `score`'s; values are pre. Only positive scores are kept. Ties go to
    the lowest row. Also: for each feature how many pre are positive and at least threshold_F[i], where that is given.
    Slots are in row order, features ascending. budget_F: int64 in 0..N; ValueError otherwise.
    """
    check_shapes(x_ND, W_FD, b_F)
    N, F = len(x_ND), len(W_FD)
    if threshold_F is not None and threshold_F.shape != (F,):
        raise ValueError(f"threshold_F must hold {F} numbers, its shape is {tuple(threshold_F.shape)}")
    if budget_F.shape != (F,) or (F and not 0 <= int(budget_F.min()) <= int(budget_F.max()) <= N):
        raise ValueError(f"budget_F must hold {F} numbers between 0 and {N}, the number of rows")
    x_ND, W_FD, b_F, budget_F = (t.contiguous() for t in (x_ND, W_FD, b_F, budget_F))
    threshold_F = None if threshold_F is None else threshold_F.contiguous()
    chosen = resolve(impl, x_ND, W_FD, b_F, triton=N <= TRITON_MAX_ROWS)
    reached_F = None if threshold_F is None else torch.zeros(F, dtype=torch.int64, device=x_ND.device)
    counted = threshold_F, reached_F
    if chosen == "reference" or N == 0 or F == 0:
        pre_NF = x_ND @ W_FD.T + b_F
        scores = pre_NF if score is None else score.of(pre_NF, slice(None))
        values, indices, offsets = reference.per_feature_topm(scores, pre_NF, budget_F)
        if threshold_F is not None:
            reached_F = ((pre_NF >= threshold_F) & (pre_NF > 0)).sum(0)
    elif chosen == "numba":
        from saetools.kernels.per_feature_topm import cpu

        values, indices, offsets = cpu.per_feature_topm(
            x_ND, W_FD, b_F, budget_F, score, counted, workspace or Workspace()
        )
    elif chosen == "triton":
        from saetools.kernels.per_feature_topm import triton

        values, indices, offsets = triton.per_feature_topm(
            x_ND, W_FD, b_F, budget_F, score, counted, workspace or Workspace()
        )
    else:
        values, indices, offsets = stock.per_feature_topm(x_ND, W_FD, b_F, budget_F, score, counted)
    return Sparse(values, indices + first_feature, offsets), reached_F


__all__ = ["per_feature_topm"]
