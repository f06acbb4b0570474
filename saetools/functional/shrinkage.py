"""Iterative shrinkage: codes of given atoms by optimisation, what an encoder in one pass is to be measured against.

    minimise over z:  1/2 ||x - z W||^2 + weight * sum_i R(z_i)                                  [N, F]
    z' = prox(y - step (y W - x) W^T),   step = 0.99 / ||W||_2^2
    y' = z' + (t - 1) / t' (z' - z),     t' = (1 + sqrt(1 + 4 t^2)) / 2          from z = y = 0, t = 1

A row that moves against its last step, <y - z', z' - z> > 0, begins again without momentum: y' = z', t' = 1. Plain
steps (y = z) take 1 / step of them for an atom's error to fall by e: hundreds, where atoms are many times more than
dimensions.

soft  R = |z|                       prox: sign(u) (|u| - step weight)_+
hard  R = [z != 0]                  prox: u where |u| > sqrt(2 step weight), else 0
cel0  R = 1 - (sqrt(2 weight) - a |z|)_+^2 / (2 weight)
                                    prox: sign(u) min(|u|, (|u| - step a sqrt(2 weight))_+ / (1 - step a^2))

a are the norms of the atoms. cel0 is the continuous penalty with the global minima of hard's. For the two that are not
convex the limit depends on the start, which is z = 0. `weight` has the units of |x| for soft, of x^2 for the others.

Source: Daubechies, Defrise, De Mol 2004 (soft); Beck & Teboulle 2009 (momentum), O'Donoghue & Candes 2015 (beginning
again); Rentzeperis et al. 2023, arXiv 2301.10002 (all three, for learning
dictionaries); Soubies, Blanc-Feraud, Aubert 2015 (CEL0).
"""

from typing import Literal

import torch
from torch import Tensor

Penalty = Literal["soft", "hard", "cel0"]


def proximal(u_NF: Tensor, penalty: Penalty, weight: float, step: Tensor | float, norms_F: Tensor) -> Tensor:
    """argmin over z of 1/2 (z - u)^2 + step * weight * R(z), elementwise; needs step * norms_F^2 < 1 for cel0."""
    size = u_NF.abs()
    if penalty == "soft":
        return u_NF.sign() * (size - step * weight).clamp_min(0)
    if penalty == "hard":
        return torch.where(size.square() > 2 * step * weight, u_NF, 0)
    if penalty == "cel0":
        shrunk = (size - step * norms_F * (2 * weight) ** 0.5).clamp_min(0) / (1 - step * norms_F.square())
        return u_NF.sign() * torch.minimum(size, shrunk)
    raise ValueError(f"penalty is {penalty!r}; known: soft, hard, cel0")


@torch.no_grad()
def shrinkage_code(
    x_ND: Tensor, W_FD: Tensor, penalty: Penalty, weight: float, n_steps: int = 100, nonnegative: bool = False
) -> Tensor:
    """z_NF after n_steps from zero; with `nonnegative` under z >= 0.

    Since R is even and rises with |z|, the proximal map under z >= 0 is that of ReLU(u). The objective falls, but for
    ripples of the momentum. Memory O(N F + F D): give rows in chunks.

    x_ND: rows less the dictionary's b_dec, in the atoms' dtype; W_FD: the atoms (`dictionary.directions()`). Half
    precision is computed in float32.
    """
    if W_FD.dtype in (torch.bfloat16, torch.float16):
        return shrinkage_code(x_ND.float(), W_FD.float(), penalty, weight, n_steps, nonnegative).to(W_FD.dtype)
    largest = torch.linalg.eigvalsh(W_FD.T @ W_FD)[-1]
    step = 0.99 / largest.clamp_min(torch.finfo(W_FD.dtype).tiny)  # 0 where no atom is in use
    norms_F = W_FD.norm(dim=1)
    z_NF, residual_ND = x_ND.new_zeros(len(x_ND), len(W_FD)), -x_ND
    y_NF, ahead_ND = z_NF, residual_ND  # where the gradient is taken, and what is left there
    t_N1 = x_ND.new_ones(len(x_ND), 1)
    for _ in range(n_steps):
        u_NF = y_NF - step * (ahead_ND @ W_FD.T)
        new_NF = proximal(u_NF.relu() if nonnegative else u_NF, penalty, weight, step, norms_F)
        new_ND = new_NF @ W_FD - x_ND
        turns_N1 = ((y_NF - new_NF) * (new_NF - z_NF)).sum(1, keepdim=True) > 0
        next_N1 = torch.where(turns_N1, 1, (1 + (1 + 4 * t_N1.square()).sqrt()) / 2)
        momentum_N1 = torch.where(turns_N1, 0, (t_N1 - 1) / next_N1)
        y_NF, ahead_ND = new_NF + momentum_N1 * (new_NF - z_NF), new_ND + momentum_N1 * (new_ND - residual_ND)
        z_NF, residual_ND, t_N1 = new_NF, new_ND, next_N1
    return z_NF
