"""Orthogonal matching pursuit in stock torch operations: a progressive Cholesky factor in feature space.

With q_t the t-th orthonormalised atom, P_t = W q_t [F] holds all that later steps need: <w_j, q_t> = P_t[j], so that
a new atom j gives y_u = P_u[j], d^2 = G_jj - sum y^2, P_t = (G_j - sum y_u P_u) / d, z_t = c_j / d, c -= z_t P_t.
The Cholesky factor of the chosen atoms' Gram matrix has rows (y, d); values solve L^T values = z.

Without a Gram matrix the q_t themselves are kept, [D] each, and c = r W^T is computed anew: y_u = <w_j, q_u>,
q_t = (w_j - sum y_u q_u) / d with d the norm of the bracket, z_t = <q_t, r>, r -= z_t q_t.
"""

import torch
from torch import Tensor

from saetools.kernels.omp.reference import DEPENDENT

CHUNK_ELEMENTS = 1 << 24
"""Elements of P, or of correlations and q, held at once."""


def omp(
    x_ND: Tensor, W_FD: Tensor, gram_FF: Tensor | None, n_steps: int, rule: str, tolerance: float
) -> tuple[Tensor, Tensor]:
    """values_NK, indices_NK as the reference."""
    row_elements = len(W_FD) * n_steps if gram_FF is not None else len(W_FD) + W_FD.shape[1] * n_steps
    chunks = x_ND.split(max(1, CHUNK_ELEMENTS // max(row_elements, 1)))
    parts = [
        _recomputed(x_CD, W_FD, n_steps, rule, tolerance)
        if gram_FF is None
        else _with_gram(x_CD, W_FD, gram_FF, n_steps, rule, tolerance)
        for x_CD in chunks
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _recomputed(x_ND: Tensor, W_FD: Tensor, n_steps: int, rule: str, tolerance: float) -> tuple[Tensor, Tensor]:
    N, D = x_ND.shape
    residual_ND = x_ND.clone()
    Q_NKD, z_NK = x_ND.new_zeros(N, n_steps, D), x_ND.new_zeros(N, n_steps)
    factor_NKK = torch.eye(n_steps, dtype=x_ND.dtype, device=x_ND.device).repeat(N, 1, 1)
    indices_NK = torch.zeros(N, n_steps, dtype=torch.int64, device=x_ND.device)
    going_N = torch.ones(N, dtype=torch.bool, device=x_ND.device)
    for t in range(n_steps):
        score_NF = residual_ND @ W_FD.T
        score_NF = score_NF.abs_() if rule == "absolute" else score_NF
        best_N, j_N = score_NF.scatter_(1, indices_NK[:, :t], -torch.inf).max(1)
        atom_ND = W_FD[j_N]
        y_Nt = (Q_NKD[:, :t] @ atom_ND[:, :, None])[:, :, 0]
        outside_ND = atom_ND - (y_Nt[:, None] @ Q_NKD[:, :t])[:, 0]
        d2_N, square_N = outside_ND.square().sum(1), atom_ND.square().sum(1)
        going_N &= ~(best_N <= 0) & (residual_ND.square().sum(1) > tolerance * tolerance)
        going_N &= d2_N > DEPENDENT * square_N
        if not going_N.any():
            break
        keep_N1, d_N = going_N[:, None], torch.where(going_N, d2_N, 1).sqrt()
        Q_NKD[:, t] = torch.where(keep_N1, outside_ND / d_N[:, None], 0)
        z_NK[:, t] = (Q_NKD[:, t] * residual_ND).sum(1)
        residual_ND.addcmul_(Q_NKD[:, t], z_NK[:, t, None], value=-1)
        factor_NKK[:, t, :t], factor_NKK[:, t, t] = torch.where(keep_N1, y_Nt, 0), d_N
        indices_NK[:, t] = torch.where(going_N, j_N, 0)
    values_NK = torch.linalg.solve_triangular(factor_NKK.mT, z_NK[:, :, None], upper=True)[:, :, 0]
    return values_NK, indices_NK.int()


def _with_gram(
    x_ND: Tensor, W_FD: Tensor, gram_FF: Tensor, n_steps: int, rule: str, tolerance: float
) -> tuple[Tensor, Tensor]:
    N = len(x_ND)
    rows_N = torch.arange(N, device=x_ND.device)
    correlation_NF, energy_N = x_ND @ W_FD.T, x_ND.square().sum(1)
    P_NKF = x_ND.new_zeros(N, n_steps, len(W_FD))
    factor_NKK = torch.eye(n_steps, dtype=x_ND.dtype, device=x_ND.device).repeat(N, 1, 1)
    z_NK = x_ND.new_zeros(N, n_steps)
    indices_NK = torch.zeros(N, n_steps, dtype=torch.int32, device=x_ND.device)
    taken_NF = torch.zeros_like(correlation_NF, dtype=torch.bool)
    going_N = torch.ones(N, dtype=torch.bool, device=x_ND.device)
    for t in range(n_steps):
        score_NF = (correlation_NF.abs() if rule == "absolute" else correlation_NF).masked_fill(taken_NF, -torch.inf)
        best_N, j_N = score_NF.max(1)
        y_Nt = P_NKF[rows_N, :t, j_N]
        d2_N = gram_FF[j_N, j_N] - y_Nt.square().sum(1)
        going_N &= ~(best_N <= 0) & (energy_N > tolerance * tolerance) & (d2_N > DEPENDENT * gram_FF[j_N, j_N])
        if not going_N.any():
            break
        d_N = torch.where(going_N, d2_N, 1).sqrt()
        keep_N1 = going_N[:, None]
        P_t = (gram_FF[j_N] - (y_Nt[:, None] @ P_NKF[:, :t])[:, 0]) / d_N[:, None]
        P_NKF[:, t] = torch.where(keep_N1, P_t, 0)
        z_NK[:, t] = torch.where(going_N, correlation_NF[rows_N, j_N] / d_N, 0)
        correlation_NF.addcmul_(P_NKF[:, t], z_NK[:, t, None], value=-1)
        energy_N -= z_NK[:, t].square()
        factor_NKK[:, t, :t] = torch.where(keep_N1, y_Nt, 0)
        factor_NKK[:, t, t] = d_N
        indices_NK[:, t] = torch.where(going_N, j_N, 0).int()
        taken_NF[going_N, j_N[going_N]] = True
    values_NK = torch.linalg.solve_triangular(factor_NKK.mT, z_NK[:, :, None], upper=True)[:, :, 0]
    return values_NK, indices_NK
