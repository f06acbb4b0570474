"""Backward pass and update in stock torch operations: sparse sums by embedding_bag, torch's fused Adam."""

import math

import torch
from torch.optim.adam import adam

from saetools.kernels.backward_adam.problem import Batch, ExtraRows, Rule, Weights
from saetools.kernels.backward_adam.reference import add_extra_, project_
from saetools.kernels.decode import scatter_rows


def gradients(weights: Weights, batch: Batch, extra: ExtraRows | None) -> Weights:
    """As the reference."""
    n_features, D = weights.W_enc_FD.shape
    code, rows_M = batch.code, batch.code.rows()
    dvalues_M = batch.dvalues()
    db_enc_F = torch.zeros_like(weights.b_enc_F).index_add_(0, code.indices_M.long(), dvalues_M)
    pull = batch.pull_NGD.reshape(-1, D)
    dW_dec = scatter_rows(-batch.scale * code.values_M, code.indices_M, batch.pull_rows(), pull, n_features, "torch")
    result = Weights(
        W_enc_FD=scatter_rows(dvalues_M, code.indices_M, rows_M, batch.x_ND, n_features, "torch"),
        W_dec_FD=dW_dec,
        b_enc_F=db_enc_F,
        b_dec_D=-batch.scale * batch.pull_NGD[:, 0].sum(0) - db_enc_F @ weights.W_enc_FD,
    )
    add_extra_(result, extra)
    return result


def feature_squares(weights: Weights, batch: Batch, extra: ExtraRows | None) -> float:
    """Sum of the squares of the gradients of W_enc, W_dec (projected) and b_enc."""
    found = gradients(weights, batch, extra)
    project_(found.W_dec_FD, weights.W_dec_FD)
    return float(torch.nn.utils.get_total_norm([found.W_enc_FD, found.W_dec_FD, found.b_enc_F])) ** 2


def backward_adam(
    weights: Weights, first: Weights, second: Weights, batch: Batch, rule: Rule, extra: ExtraRows | None
) -> float:
    """As the reference."""
    found = gradients(weights, batch, extra)
    project_(found.W_dec_FD, weights.W_dec_FD)
    norm = math.hypot(float(torch.nn.utils.get_total_norm(list(found))), rule.elsewhere**0.5)
    if not norm < torch.inf:
        return norm
    torch._foreach_mul_(list(found), rule.clip(norm))
    adam(
        list(weights),
        list(found),
        list(first),
        list(second),
        [],
        [torch.tensor(float(rule.n_steps), dtype=torch.float32, device=p.device) for p in weights],
        fused=True,
        amsgrad=False,
        beta1=rule.betas[0],
        beta2=rule.betas[1],
        lr=rule.lr,
        weight_decay=0.0,
        eps=rule.eps,
        maximize=False,
    )
    weights.W_dec_FD.div_(weights.W_dec_FD.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
    return norm
