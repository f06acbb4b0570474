"""Orthogonal matching pursuit in plain torch: least squares over the chosen atoms, solved anew in each step."""

import torch
from torch import Tensor

DEPENDENT = 1e-6
"""An atom of which less than this share (squared) lies outside the span of the chosen ones ends the row's pursuit."""


def solve(x_ND: Tensor, W_FD: Tensor, indices_NK: Tensor, used_NK: Tensor) -> Tensor:
    """values_NK of least squares: (W_S W_S^T) values = W_S x on the slots in use, 0 on the others."""
    atoms_NKD = W_FD[indices_NK.long()] * used_NK[:, :, None]
    gram_NKK = atoms_NKD @ atoms_NKD.mT + torch.diag_embed((~used_NK).to(W_FD.dtype))
    return torch.linalg.solve(gram_NKK, (atoms_NKD @ x_ND[:, :, None]))[:, :, 0]


def omp(x_ND: Tensor, W_FD: Tensor, n_steps: int, rule: str, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """values_NK, indices_NK (int32), residual_ND as `omp` describes them; differentiable in x and W."""
    N = len(x_ND)
    indices_NK = torch.zeros(N, n_steps, dtype=torch.int32, device=x_ND.device)
    used_NK = torch.zeros(N, n_steps, dtype=torch.bool, device=x_ND.device)
    taken_NF = torch.zeros(N, len(W_FD), dtype=torch.bool, device=x_ND.device)
    values_NK, residual_ND = x_ND.new_zeros(N, n_steps), x_ND
    going_N = torch.ones(N, dtype=torch.bool, device=x_ND.device)
    for t in range(n_steps):
        with torch.no_grad():
            score_NF = residual_ND @ W_FD.T
            score_NF = (score_NF.abs() if rule == "absolute" else score_NF).masked_fill(taken_NF, -torch.inf)
            best_N, chosen_N = score_NF.max(1)
            going_N = going_N & (best_N > 0) & (residual_ND.norm(dim=1) > tolerance)
            going_N &= _outside(W_FD, indices_NK, used_NK, chosen_N) > DEPENDENT
            indices_NK[going_N, t], used_NK[going_N, t] = chosen_N[going_N].int(), True
            taken_NF[going_N, chosen_N[going_N]] = True
        values_NK = solve(x_ND, W_FD, indices_NK, used_NK)
        residual_ND = x_ND - (values_NK[:, None] @ W_FD[indices_NK.long()])[:, 0]
    return values_NK, indices_NK, residual_ND


def _outside(W_FD: Tensor, indices_NK: Tensor, used_NK: Tensor, chosen_N: Tensor) -> Tensor:
    """||part of the chosen atom outside the span of the slots in use||^2 / ||atom||^2."""
    atom_ND = W_FD[chosen_N]
    within_NK = solve(atom_ND, W_FD, indices_NK, used_NK)
    outside_ND = atom_ND - (within_NK[:, None] @ W_FD[indices_NK.long()])[:, 0]
    return outside_ND.square().sum(1) / atom_ND.square().sum(1)
