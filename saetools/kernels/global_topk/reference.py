"""Selection over the whole batch in plain torch: one stable sort of every score."""

import torch
from torch import Tensor


def global_topk(score_NF: Tensor, pre_NF: Tensor, n_kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """values_M, indices_M (int32), offsets_N1, threshold as `global_topk` describes them."""
    N, F = score_NF.shape
    order = torch.sort(score_NF.reshape(-1), descending=True, stable=True).indices[:n_kept]
    nth = score_NF.reshape(-1)[order[-1:]]
    order = order[~(score_NF.reshape(-1)[order] <= 0)].sort().values
    rows_M, indices_M = order // max(F, 1), order % max(F, 1)
    offsets_N1 = torch.nn.functional.pad(torch.bincount(rows_M, minlength=N).cumsum(0), (1, 0))
    threshold = nth[0] if len(order) == n_kept else score_NF.new_zeros(())
    return pre_NF.reshape(-1)[order], indices_M.int(), offsets_N1, threshold
