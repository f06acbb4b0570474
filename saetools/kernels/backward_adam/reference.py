"""Backward pass, projection, clipping, Adam and renormalisation in plain torch, one after the other."""

import torch
from torch import Tensor

from saetools.kernels.backward_adam.problem import Batch, ExtraRows, Rule, Weights


def gradients(weights: Weights, batch: Batch, extra: ExtraRows | None) -> Weights:
    """dL/d of each parameter, not projected. b_dec takes part twice: it is added to recon and taken off x."""
    x_ND, code, D = batch.x_ND, batch.code, batch.x_ND.shape[1]
    place = (code.rows(), code.indices_M.long())
    zeros_NF = torch.zeros(len(x_ND), len(weights.W_enc_FD), dtype=x_ND.dtype, device=x_ND.device)
    dvalues_NF = zeros_NF.index_put(place, batch.dvalues(), accumulate=True)
    weighted_MD = code.values_M[:, None] * batch.pull_NGD.reshape(-1, D)[batch.pull_rows()]
    db_enc_F = dvalues_NF.sum(0)
    result = Weights(
        W_enc_FD=dvalues_NF.T @ x_ND,
        W_dec_FD=torch.zeros_like(weights.W_dec_FD).index_add_(0, code.indices_M.long(), -batch.scale * weighted_MD),
        b_enc_F=db_enc_F,
        b_dec_D=-batch.scale * batch.pull_NGD[:, 0].sum(0) - db_enc_F @ weights.W_enc_FD,
    )
    add_extra_(result, extra)
    return result


def add_extra_(gradients: Weights, extra: ExtraRows | None) -> None:
    """Add the rows of another loss, in place."""
    if extra is not None:
        gradients.W_enc_FD.index_add_(0, extra.features_A, extra.W_enc_AD)
        gradients.W_dec_FD.index_add_(0, extra.features_A, extra.W_dec_AD)
        gradients.b_enc_F.index_add_(0, extra.features_A, extra.b_enc_A)
        gradients.b_dec_D.add_(extra.b_dec_D)


def project_(gradient_FD: Tensor, W_FD: Tensor) -> None:
    """g_i <- g_i - <g_i, w_i> w_i, in place."""
    gradient_FD.addcmul_((gradient_FD * W_FD).sum(1, keepdim=True), W_FD, value=-1)


def apply_(weights: Weights, first: Weights, second: Weights, gradients: Weights, rule: Rule) -> None:
    """Adam on every parameter, then unit rows of W_dec, in place."""
    b1, b2 = rule.betas
    for p, m, v, g in zip(weights, first, second, gradients):
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        p.addcdiv_(m, v.sqrt().mul_(rule.correction()).add_(rule.eps), value=-rule.step_size())
    weights.W_dec_FD.div_(weights.W_dec_FD.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))


def backward_adam(
    weights: Weights, first: Weights, second: Weights, batch: Batch, rule: Rule, extra: ExtraRows | None
) -> float:
    """The norm before clipping; nothing is changed where it is not finite."""
    found = gradients(weights, batch, extra)
    project_(found.W_dec_FD, weights.W_dec_FD)
    norm = float(torch.stack([g.double().square().sum() for g in found]).sum() + rule.elsewhere) ** 0.5
    if norm < torch.inf:
        for g in found:
            g.mul_(rule.clip(norm))
        apply_(weights, first, second, found, rule)
    return norm
