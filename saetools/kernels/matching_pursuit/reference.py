"""Matching pursuit in plain torch: correlations of the residual with every atom, step by step, under autograd."""

import torch
from torch import Tensor


def scores(correlation_NF: Tensor, rule: str) -> Tensor:
    """What the chosen atom maximises."""
    return correlation_NF.abs() if rule == "absolute" else correlation_NF


def matching_pursuit(
    x_ND: Tensor, W_FD: Tensor, n_steps: int, rule: str, tolerance: float, reselect: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """values_NK, indices_NK (int32), residual_ND as `matching_pursuit` describes them."""
    residual_ND = x_ND
    taken_NF = torch.zeros(len(x_ND), len(W_FD), dtype=torch.bool, device=x_ND.device)
    going_N = torch.ones(len(x_ND), dtype=torch.bool, device=x_ND.device)
    values, indices = [], []
    for _ in range(n_steps):
        score_NF = scores(residual_ND.detach() @ W_FD.detach().T, rule)
        if not reselect:
            score_NF = score_NF.masked_fill(taken_NF, -torch.inf)
        best_N, chosen_N = score_NF.max(1)  # of equal scores the first
        going_N = going_N & (residual_ND.detach().norm(dim=1) > tolerance)
        if rule != "signed":
            going_N = going_N & (best_N > 0)
        chosen_N = torch.where(going_N, chosen_N, 0)
        taken_NF[going_N, chosen_N[going_N]] = True
        value_N = torch.where(going_N, (residual_ND * W_FD[chosen_N]).sum(1), 0)
        residual_ND = residual_ND - value_N[:, None] * W_FD[chosen_N]
        values.append(value_N)
        indices.append(chosen_N.int())
    if not values:
        empty = x_ND.new_zeros(len(x_ND), 0)
        return empty, empty.int(), residual_ND
    return torch.stack(values, 1), torch.stack(indices, 1), residual_ND
