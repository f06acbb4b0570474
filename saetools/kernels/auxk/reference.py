"""AuxK and its gradients in plain torch and autograd: the definition that the compacted form is compared with."""

import torch
from torch import Tensor

from saetools.kernels.backward_adam.problem import ExtraRows


def auxk(
    x_ND: Tensor, residual_ND: Tensor, W_enc_AD: Tensor, b_enc_A: Tensor, W_dec_AD: Tensor, k_aux: int, weight: float
) -> tuple[Tensor, ExtraRows]:
    """loss and the gradients of weight * loss, as `auxk` describes them; `features_A` is 0, 1, ..."""
    n_dead = len(W_enc_AD)
    with torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_() for t in (W_enc_AD, W_dec_AD, b_enc_A)]
        shift_D = torch.zeros_like(x_ND[0]).requires_grad_()
        pre_NA = (x_ND - shift_D) @ leaves[0].T + leaves[2]
        kept = torch.sort(pre_NA, dim=1, descending=True, stable=True).indices[:, :k_aux]
        code_NA = torch.zeros_like(pre_NA).scatter(1, kept, pre_NA.gather(1, kept).relu())
        error = (residual_ND - code_NA @ leaves[1]).square().sum(1).mean()
        variance = (residual_ND - residual_ND.mean(0)).square().sum(1).mean()
        loss = min(n_dead / k_aux, 1.0) * error / variance
        dW_enc, dW_dec, db_enc, db_dec = torch.autograd.grad(weight * loss, [*leaves, shift_D])
    return loss.detach(), ExtraRows(torch.arange(n_dead), dW_enc, dW_dec, db_enc, db_dec)
