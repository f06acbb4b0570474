"""Norm matching of top-AFA: how many features make the code as long as the row, and what a mismatch says.

For unit atoms with |<d_i, d_j>| <= eps, a row z = sum f_i d_i obeys | ||z||^2 - ||f||^2 | <= eps (h - 1) ||f||^2 with h
features (h may be the number of active ones): nearly orthogonal atoms make codes nearly as long as their rows.
Source: Lee et al. 2025, "Evaluating and Designing Sparse Autoencoders by Approximating Quasi-Orthogonality", arXiv
2503.24277.
"""

import torch
from torch import Tensor


@torch.no_grad()
def norm_matching_mask(active_NF: Tensor, norms_N: Tensor) -> Tensor:
    """mask_NF (bool) of each row's largest entries, as many as bring their norm nearest to the given norm.

    active_NF >= 0. count = 1 + argmin_t | sqrt(sum of the t + 1 largest squares) - norm |, the least of equals, less
    than F; zeros are never kept.
    """
    sorted_NF, order_NF = active_NF.sort(dim=1, descending=True)
    lengths_NF = sorted_NF.square().cumsum(1).sqrt()
    last = max(1, active_NF.shape[1] - 1)
    least_N = (lengths_NF[:, :last] - norms_N[:, None]).abs().argmin(dim=1)
    ranks_F = torch.arange(active_NF.shape[1], device=active_NF.device)
    kept_NF = (ranks_F <= least_N[:, None]) & (sorted_NF > 0)
    return torch.zeros_like(kept_NF).scatter(1, order_NF, kept_NF)


def epsilon_lower_bound_N(row_squares_N: Tensor, code_squares_N: Tensor, n_features: int | Tensor) -> Tensor:
    """eps_LBO of each row: the least coherence that explains the mismatch, | ||z||^2 - ||f||^2 | / ((h - 1) ||f||^2).

    row_squares_N: ||z||^2; code_squares_N: ||f||^2. `n_features`: h, the dictionary's size as in the paper, or the
    row's number of active features, which gives a far larger (tighter) bound. nan where the code is empty or h = 1.
    """
    mismatch_N = (row_squares_N - code_squares_N).abs()
    bound_N = mismatch_N / ((torch.as_tensor(n_features, device=code_squares_N.device) - 1) * code_squares_N)
    return bound_N.where(bound_N.isfinite(), torch.nan)
