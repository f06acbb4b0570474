"""Selection per feature in plain torch: one stable sort of each column."""

import torch
from torch import Tensor


def per_feature_topm(score_NF: Tensor, pre_NF: Tensor, budget_F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """values_M, indices_M (int32), offsets_N1 as `per_feature_topm` describes them."""
    N = len(score_NF)
    order_NF = torch.sort(score_NF, dim=0, descending=True, stable=True).indices
    taken = (torch.arange(N, device=score_NF.device)[:, None] < budget_F) & ~(score_NF.gather(0, order_NF) <= 0)
    kept_NF = torch.zeros_like(taken).scatter(0, order_NF, taken)
    rows_M, indices_M = kept_NF.nonzero(as_tuple=True)
    offsets_N1 = torch.nn.functional.pad(kept_NF.sum(1).cumsum(0), (1, 0))
    return pre_NF[rows_M, indices_M], indices_M.int(), offsets_N1
