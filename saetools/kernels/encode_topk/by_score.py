"""Top-k encoding by a score that is not the pre-activation itself, chunk of rows by chunk."""

import torch
from torch import Tensor

from saetools.kernels.backend import Impl, check_shapes, operation, resolve
from saetools.kernels.encode_topk import stock
from saetools.kernels.score import Score
from saetools.kernels.workspace import Workspace


@torch.no_grad()
@operation
def encode_by_score(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    score: Score,
    *,
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """values_NK, indices_NK (int32): pre at the k largest scores of each row; ties go to the lowest index.

    Slots whose score is not positive are unused (value 0, index 0), and so are those whose pre is 0. ValueError where
    k is not in 1..F, and where shapes do not fit.
    """
    check_shapes(x_ND, W_FD, b_F)
    if not 1 <= k <= len(W_FD):
        raise ValueError(f"k is {k}; it must lie in 1..{len(W_FD)}, the number of features")
    chosen, workspace = resolve(impl, x_ND, W_FD, b_F, triton=False), workspace or Workspace()
    x_ND, W_FD, b_F = x_ND.contiguous(), W_FD.contiguous(), b_F.contiguous()
    N, F = len(x_ND), len(W_FD)
    values_NK = x_ND.new_zeros(N, k)
    indices_NK = torch.zeros(N, k, dtype=torch.int32, device=x_ND.device)
    chunk = max(1, min(N, stock.CHUNK_ELEMENTS // max(F, 1)))
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        pre_CF = stock.preactivations(x_ND[rows], W_FD, b_F, workspace)
        score_CF = score.of(pre_CF, rows)
        if chosen == "numba":
            from saetools.kernels.encode_topk import cpu

            scores_CK, indices_CK = cpu.select(score_CF, k)
        else:
            scores_CK, found_CK = stock.lowest_ties(score_CF, None, k)
            indices_CK = found_CK.int()
        values_NK[rows] = pre_CF.gather(1, indices_CK.long()).where(~(scores_CK <= 0), 0)
        indices_NK[rows] = indices_CK.where(values_NK[rows] != 0, 0)
    return values_NK, indices_NK
