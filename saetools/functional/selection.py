"""Which latents a row keeps. Plain torch; the kernels room has the fast forms."""

import torch
from torch import Tensor


@torch.no_grad()
def topk_indices(scores_NF: Tensor, k: int) -> Tensor:
    """indices_NK (int64) of the k largest scores of each row, in descending order; the lowest index wins a tie.

    `torch.topk` breaks ties as it likes. One element more than k shows whether a tie straddles the boundary; only
    such rows, which are rare, are sorted stably. Ties among scores <= 0 are left alone: a ReLU makes them equal.
    """
    n_features = scores_NF.shape[1]
    if k >= n_features:
        return scores_NF.argsort(dim=1, descending=True, stable=True)
    values, indices = scores_NF.topk(k + 1, dim=1)
    ambiguous_N = (values[:, k - 1] == values[:, k]) & (values[:, k] > 0)
    indices = indices[:, :k].contiguous()
    rows = ambiguous_N.nonzero()[:, 0]
    if len(rows):
        indices[rows] = scores_NF[rows].argsort(dim=1, descending=True, stable=True)[:, :k]
    return indices


def topk_code(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values_NK, indices_NK int32): ReLU of the k largest pre-activations of each row.

    Slots whose pre-activation is not positive are value 0, index 0, and pass no gradient. A row may thus have fewer
    than k active features. Source: Gao et al. 2024 (arXiv 2406.04093), equation 3 with the ReLU of their code.
    """
    indices_NK = topk_indices(pre_NF, k)
    values_NK = pre_NF.gather(1, indices_NK).relu()
    return values_NK, indices_NK.where(values_NK > 0, 0).int()


@torch.no_grad()
def topk_mask_reference(scores_NF: Tensor, k: int) -> Tensor:
    """mask_NF (bool) of the k largest scores per row by a full stable sort: the form that is plainly right."""
    order = scores_NF.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores_NF, dtype=torch.bool).scatter(1, order[:, :k], True)
