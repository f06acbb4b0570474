"""Encode and select over the whole batch (mutual choice): the n_kept largest scores, whichever rows they are in."""

import torch
from torch import Tensor

from saetools.kernels.backend import Impl, check_shapes, operation, resolve
from saetools.kernels.encode_topk import Precision, preferred_precision
from saetools.kernels.global_topk import reference, stock
from saetools.kernels.score import Score
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace


@torch.no_grad()
@operation
def global_topk(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    n_kept: int,
    *,
    score: Score | None = None,
    precision: Precision = "fp32",
    guess: float = 0.0,
    first_feature: int = 0,
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> tuple[Sparse, float]:
    """The ragged code of the n_kept largest scores of the batch, and the least score kept (0 if fewer are positive).

    pre = x W^T + b; scores are pre itself or `score`'s; values are pre. Only positive scores are kept. Ties go to
    the lowest row, then the lowest feature. Slots are in row order, features ascending. Exact whatever `guess` is:
    it is a bound to try first (the last batch's threshold times 0.9, say), and a bad one costs time alone.
    `precision` as in `encode_topk` (exact in compiled loops; stock torch always works in fp32; on a GPU "bf16-screen"
    chooses 1.25 n_kept by a bf16 product and computes these in float32). No [N, F] tensor beyond a row chunk is kept. A
    score of NaN is the greatest and always kept, so that it cannot go unseen. ValueError where shapes do not fit.
    """
    if n_kept < 0:
        raise ValueError(f"n_kept is {n_kept}; it cannot be negative")
    check_shapes(x_ND, W_FD, b_F)
    x_ND, W_FD, b_F = x_ND.contiguous(), W_FD.contiguous(), b_F.contiguous()
    n_kept = min(n_kept, len(x_ND) * len(W_FD))
    chosen = resolve(impl, x_ND, W_FD, b_F)
    if n_kept == 0:
        no_indices = torch.zeros(0, dtype=torch.int32, device=x_ND.device)
        return Sparse(x_ND.new_zeros(0), no_indices, no_indices.new_zeros(len(x_ND) + 1, dtype=torch.int64)), 0.0
    if chosen == "numba":
        from saetools.kernels.global_topk import cpu

        workspace = workspace or Workspace()
        screen = (preferred_precision(chosen) if precision == "auto" else precision) == "bf16-screen"
        parts = cpu.global_topk(x_ND, W_FD, b_F, n_kept, score, guess, first_feature, screen, workspace)
        return Sparse(*parts[:3]), float(parts[3])
    if chosen == "triton":
        from saetools.kernels.global_topk import triton

        low = (preferred_precision(chosen) if precision == "auto" else precision) == "bf16-screen"
        return triton.global_topk(x_ND, W_FD, b_F, n_kept, score, guess, first_feature, low, workspace or Workspace())
    if chosen == "torch":
        values, indices, offsets, threshold = stock.global_topk(x_ND, W_FD, b_F, n_kept, score)
    else:
        pre_NF = x_ND @ W_FD.T + b_F
        scores = pre_NF if score is None else score.of(pre_NF, slice(None))
        values, indices, offsets, threshold = reference.global_topk(scores, pre_NF, n_kept)
    return Sparse(values, indices + first_feature, offsets), float(threshold)


__all__ = ["global_topk"]
