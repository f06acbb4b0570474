"""How many tokens each feature takes, where features choose."""

import numpy as np
import torch
from torch import Tensor

from saetools.functional.zipf import zipf_mandelbrot_fit


def zipf_shares(density_F: Tensor, k: float, n_effective: int) -> Tensor:
    """share_F (float64, on the device of the densities), sum k, each at most 1: the fitted law at each one's rank.

    density_F: measured fraction of tokens per feature, over about n_effective tokens (the fit leaves out features
    with fewer than 10 firings). Ranks are by density, ties by index. Where no law can be fitted (all equal, or
    nothing measured yet) all shares are equal. Source: Ayonrinde 2024 (arXiv 2411.02124); see dictionaries
    feature_choice for what is ours.
    """
    densities = density_F.detach().cpu().numpy()
    fit = zipf_mandelbrot_fit(densities * n_effective, n_effective)
    if fit is None:
        return torch.full_like(density_F, min(1.0, k / len(density_F)))
    order = np.argsort(-densities, kind="stable")
    shares = np.empty_like(densities)
    shares[order] = fit.density(np.arange(1, len(densities) + 1))
    return torch.from_numpy(capped_to_sum(shares, k)).to(density_F)


def capped_to_sum(shares: np.ndarray, total: float) -> np.ndarray:
    """min(c * shares, 1) with the factor c that makes the sum `total`, at most the number of shares; all positive."""
    capped = np.zeros(len(shares), dtype=bool)
    while True:
        free = total - capped.sum()
        scaled = np.where(capped, 1.0, shares * (free / max(shares[~capped].sum(), np.finfo(float).tiny)))
        over = (scaled > 1) & ~capped
        if not over.any() or capped.all():
            return np.minimum(scaled, 1.0)
        capped |= over


def random_rounding(expected_F: Tensor, generator: torch.Generator) -> Tensor:
    """int64 [F]: floor or ceiling at random, such that the mean is the given number."""
    draws_F = torch.rand(expected_F.shape, generator=generator, dtype=torch.float64, device="cpu").to(expected_F.device)
    return (expected_F + draws_F).floor().long()
