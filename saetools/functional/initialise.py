"""How weights begin. Each draw is a pure function of (seed, purpose)."""

import torch
from torch import Tensor

from saetools.rng import torch_seed


def random_directions(n_features: int, d_model: int, seed: int, purpose: str = "decoder") -> Tensor:
    """W_FD (float32): rows uniform on the unit sphere (normal draws divided by their norm)."""
    generator = torch.Generator().manual_seed(torch_seed(seed, f"initialise/{purpose}"))
    W_FD = torch.randn(n_features, d_model, generator=generator)
    return W_FD / W_FD.norm(dim=1, keepdim=True)


def tied_start(n_features: int, d_model: int, seed: int) -> tuple[Tensor, Tensor]:
    """(W_enc_FD, W_dec_FD), equal in value and separate in memory: unit rows of random direction.

    Source: Gao et al. 2024 (arXiv 2406.04093), appendix A.1: a tied start all but prevents dead latents. They draw
    the encoder from torch's Linear default and then rescale it; we take unit rows as they are (their ablation found
    no benefit of the rescaling).
    """
    W_dec_FD = random_directions(n_features, d_model, seed)
    return W_dec_FD.clone(), W_dec_FD
