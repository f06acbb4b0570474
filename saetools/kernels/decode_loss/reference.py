"""Decode, loss, residuals and code gradients in plain torch: the definition that the fused pass is compared with."""

import torch
from torch import Tensor


def decode_loss(
    x_NHD: Tensor,
    values_M: Tensor,
    indices_M: Tensor,
    rows_M: Tensor,
    W_FD: Tensor,
    b_D: Tensor,
    group_M: Tensor,
    weights_G: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss_NG, pull_NGD, dots_M as `decode_loss` describes them."""
    zeros_NF = torch.zeros(len(x_NHD), len(W_FD), dtype=x_NHD.dtype, device=x_NHD.device)
    residuals = []
    for g in range(len(weights_G)):
        nested_M = torch.where(group_M <= g, values_M, 0)
        code_NF = zeros_NF.index_put((rows_M.long(), indices_M.long()), nested_M, accumulate=True)
        residuals.append(x_NHD[:, min(g, x_NHD.shape[1] - 1)] - (code_NF @ W_FD + b_D))
    residual_NGD = torch.stack(residuals, dim=1)
    loss_NG = residual_NGD.square().sum(2)
    weighted_NGD = residual_NGD * weights_G[:, None]
    pull_NGD = weighted_NGD.flip(1).cumsum(1).flip(1)
    dots_M = (pull_NGD[rows_M.long(), group_M.long()] * W_FD[indices_M.long()]).sum(1)
    return loss_NG, pull_NGD, torch.where(values_M != 0, dots_M, 0)
