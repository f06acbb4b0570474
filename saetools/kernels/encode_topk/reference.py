"""Top-k encoding in plain torch: the definition that the fast paths are compared with."""

import torch
from torch import Tensor


def encode_topk(x_ND: Tensor, W_FD: Tensor, b_F: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """values_NK, indices_NK (int32) of the k largest of pre = x W^T + b in each row; ties go to the lowest index.

    With `relu`, values that are not positive leave their slot unused: value 0, index 0. Differentiable in x, W and b
    through the selected values only.
    """
    pre_NF = x_ND @ W_FD.T + b_F
    # a stable descending sort keeps equal values in the order of their indices; torch.topk promises nothing
    order_NF = torch.sort(pre_NF, dim=1, descending=True, stable=True).indices
    indices_NK = order_NF[:, :k]
    values_NK = pre_NF.gather(1, indices_NK)
    if relu:
        values_NK = values_NK.relu()
        indices_NK = indices_NK.masked_fill(values_NK == 0, 0)
    return values_NK, indices_NK.int()
