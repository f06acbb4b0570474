"""How well a reconstruction keeps the direction of a row, whatever its length."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def cosine_N(x_ND: Tensor, recon_ND: Tensor) -> Tensor:
    """cos(x, recon) of each row; 0 where only recon is zero, 1 where x is zero: there is nothing to explain."""
    cosine = torch.linalg.vecdot(normalize(x_ND, dim=1), normalize(recon_ND, dim=1))
    return torch.where(x_ND.any(dim=1), cosine, 1.0)


def direction_error(cosine: Tensor, d_model: int) -> Tensor:
    """mean_j (x_j / ||x|| - recon_j / ||recon||)^2 = 2 (1 - cos) / D: the error by which ITDA judges rows.

    Its greatest value depends on D, so thresholds are given as cosines. Source: Leask et al. 2025 (arXiv 2505.17769).
    """
    return 2 * (1 - cosine) / d_model


def leaders(x_VD: Tensor, min_cosine: float, least: int) -> Tensor:
    """Rows (int64 places) none of which is near another, those first that most rows are near to.

    Two rows are near each other where |cos| >= min_cosine. Taken greedily, in the order of how many rows (itself
    included) are near, the first of equals first; rows with fewer than `least` are not taken.
    """
    unit = normalize(x_VD, dim=1)
    near_VV = (unit @ unit.T).abs() >= min_cosine
    near_VV.fill_diagonal_(True)
    counts, order = near_VV.sum(1).sort(descending=True, stable=True)
    is_open = torch.ones(len(x_VD), dtype=torch.bool, device=x_VD.device)
    taken = []
    for place in order[counts >= least].tolist():
        if is_open[place]:
            taken.append(place)
            is_open &= ~near_VV[place]
    return torch.tensor(taken, dtype=torch.int64, device=x_VD.device)
