"""Matching pursuit in stock torch operations without autograd, and its reversible backward."""

import torch
from torch import Tensor

from saetools.kernels.decode.stock import gather_sum
from saetools.kernels.matching_pursuit import reference
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace

CHUNK_ELEMENTS = 1 << 22
"""Correlations held at once."""


def matching_pursuit(
    x_ND: Tensor,
    W_FD: Tensor,
    gram_FF: Tensor | None,
    n_steps: int,
    rule: str,
    tolerance: float,
    reselect: bool,
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference, by row chunks; with a Gram matrix, correlations are updated instead of computed anew."""
    chunk = max(1, CHUNK_ELEMENTS // max(len(W_FD), 1))
    parts = [
        _with_gram(x_CD, W_FD, gram_FF, n_steps, rule, tolerance, reselect)
        if gram_FF is not None
        else reference.matching_pursuit(x_CD, W_FD, n_steps, rule, tolerance, reselect)
        for x_CD in x_ND.split(chunk)
    ]
    return tuple(torch.cat(column) for column in zip(*parts))  # type: ignore[return-value]


def _with_gram(
    x_ND: Tensor, W_FD: Tensor, gram_FF: Tensor, n_steps: int, rule: str, tolerance: float, reselect: bool
) -> tuple[Tensor, Tensor, Tensor]:
    correlation_NF, energy_N = x_ND @ W_FD.T, x_ND.square().sum(1)
    square_F = gram_FF.diagonal()
    taken_NF = torch.zeros_like(correlation_NF, dtype=torch.bool)
    going_N = torch.ones(len(x_ND), dtype=torch.bool, device=x_ND.device)
    values_NK = x_ND.new_zeros(len(x_ND), n_steps)
    indices_NK = torch.zeros(len(x_ND), n_steps, dtype=torch.int32, device=x_ND.device)
    for t in range(n_steps):
        score_NF = reference.scores(correlation_NF, rule)
        if not reselect:
            score_NF = score_NF.masked_fill(taken_NF, -torch.inf)
        best_N, chosen_N = score_NF.max(1)
        going_N &= energy_N > tolerance * tolerance
        if rule != "signed":
            going_N &= best_N > 0
        chosen_N = torch.where(going_N, chosen_N, 0)
        taken_NF[going_N, chosen_N[going_N]] = True
        value_N = torch.where(going_N, correlation_NF.gather(1, chosen_N[:, None])[:, 0], 0)
        correlation_NF.addcmul_(gram_FF[chosen_N], value_N[:, None], value=-1)
        energy_N -= value_N.square() * (2 - square_F[chosen_N])
        values_NK[:, t], indices_NK[:, t] = value_N, chosen_N.int()
    flat = Sparse.fixed(values_NK, indices_NK)
    residual_ND = x_ND - gather_sum(flat.values_M, flat.indices_M, flat.offsets_N1, W_FD)
    return values_NK, indices_NK, residual_ND


def backward(
    residual_ND: Tensor, values_NK: Tensor, indices_NK: Tensor, W_FD: Tensor, dvalues_NK: Tensor, dresidual_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """dx_ND, dW_FD by running the pursuit backwards: r_{t-1} = r_t + v_t w_t needs no stored residual.

    lam_t = dL/dr_t;  s_t = dL/dv_t - <lam_t, w_t>;  dW[i_t] += s_t r_{t-1} - v_t lam_t;  lam_{t-1} = lam_t + s_t w_t
    """
    after_ND, lam_ND, dW_FD = residual_ND.clone(), dresidual_ND.clone(), torch.zeros_like(W_FD)
    for t in reversed(range(values_NK.shape[1])):
        v_N1, i_N = values_NK[:, t, None], indices_NK[:, t].long()
        w_ND = W_FD[i_N]
        s_N1 = torch.where(v_N1 != 0, dvalues_NK[:, t, None] - (lam_ND * w_ND).sum(1, keepdim=True), 0)
        before_ND = after_ND + v_N1 * w_ND
        dW_FD.index_add_(0, i_N, s_N1 * before_ND - v_N1 * lam_ND)
        lam_ND += s_N1 * w_ND
        after_ND = before_ND
    return lam_ND, dW_FD
