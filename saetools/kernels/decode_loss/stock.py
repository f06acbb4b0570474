"""Decode, loss, residuals and code gradients in stock torch operations, group by group."""

import torch
from torch import Tensor

from saetools.kernels.decode import stock as decode


def decode_loss(
    x_NHD: Tensor,
    values_M: Tensor,
    indices_M: Tensor,
    offsets_N1: Tensor,
    rows_M: Tensor,
    W_FD: Tensor,
    b_D: Tensor,
    group_M: Tensor,
    weights_G: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    (N, H, D), n_groups = x_NHD.shape, len(weights_G)
    residual_NGD = x_NHD.new_empty(N, n_groups, D)
    left_ND = x_NHD[:, 0] - b_D
    for g in range(n_groups):
        if g and H > 1:
            left_ND = left_ND + (x_NHD[:, g] - x_NHD[:, g - 1])
        part_M = values_M if n_groups == 1 else torch.where(group_M == g, values_M, 0)
        left_ND = left_ND - decode.gather_sum(part_M, indices_M, offsets_N1, W_FD)
        residual_NGD[:, g] = left_ND
    loss_NG = residual_NGD.square().sum(2)
    pull_NGD = residual_NGD.mul_(weights_G[:, None])
    if n_groups > 1:
        pull_NGD = pull_NGD.flip(1).cumsum(1).flip(1)
    pull_rows = rows_M * n_groups + group_M.long()
    dots_M = decode.gather_dot(indices_M, pull_rows, pull_NGD.view(-1, D), W_FD)
    return loss_NG, pull_NGD, torch.where(values_M != 0, dots_M, 0)
