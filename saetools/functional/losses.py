"""Terms of training losses. Each is a mean over rows, unweighted, a scalar of the rows' dtype."""

import torch
from torch import Tensor

from saetools.functional.linear import preactivations, scatter_rows
from saetools.functional.selection import topk_code


def mean_of_rows(terms_N: Tensor) -> Tensor:
    """Mean, accumulated in float64; 0 without rows."""
    return (terms_N.sum(dtype=torch.float64) / max(len(terms_N), 1)).to(terms_N.dtype)


def squared_error_N(residual_ND: Tensor) -> Tensor:
    """||residual||^2 of each row, summed over D."""
    return residual_ND.square().sum(1)


def reconstruction(residual_ND: Tensor, total_variance: Tensor) -> Tensor:
    """Mean over rows of ||target - recon||^2, divided by V.

    V is the total variance of the rows measured once before training (a constant of the run), so that the loss is
    the FVU in expectation, does not depend on the units of x and has the same gradient scale in each batch.
    """
    return mean_of_rows(squared_error_N(residual_ND)) / total_variance.to(residual_ND.dtype)


def auxk(
    x_ND: Tensor,
    residual_ND: Tensor,
    W_enc_AD: Tensor,
    b_enc_A: Tensor,
    b_dec_D: Tensor,
    W_dec_AD: Tensor,
    k_aux: int,
    signed: bool = False,
) -> Tensor:
    """AuxK: the A dead latents, given by their rows alone, learn what the living ones leave.

    e = stop_gradient(target - recon);  e' = sum of the min(k_aux, A) largest ReLU(pre) among the dead, times W_dec
    loss = min(A / k_aux, 1) * mean_n ||e - e'||^2 / mean_n ||e - mean_n e||^2

    With `signed` (dictionaries of signed codes) the largest |pre| are taken with their sign.
    No bias in the decode of e'; selecting among the dead alone equals masking the living with -inf. 0 where nothing
    is dead or where the residual does not vary but for rounding (a single row, equal rows). The gradient reaches rows
    of both matrices and both biases. Source: Gao et al. 2024 (arXiv 2406.04093), appendix A.2; normalisation and decode
    without bias as in saprmarks/dictionary_learning; the factor min(A / k_aux, 1) as in EleutherAI/sparsify.
    """
    n_dead, error_ND = W_enc_AD.shape[0], residual_ND.detach()
    if n_dead == 0:
        return error_ND.new_zeros(())
    pre_NA = preactivations(x_ND, W_enc_AD, b_enc_A, b_dec_D)
    if n_dead > k_aux:
        code_NA = scatter_rows(*topk_code(pre_NA, k_aux, signed), n_dead)
    else:
        code_NA = pre_NA if signed else pre_NA.relu()
    loss = mean_of_rows(squared_error_N(error_ND - code_NA @ W_dec_AD))
    variance = mean_of_rows(squared_error_N(error_ND - error_ND.sum(0) / max(len(error_ND), 1)))
    least = 100 * torch.finfo(loss.dtype).eps ** 2 * mean_of_rows(squared_error_N(error_ND))
    normalised = loss / variance.clamp_min(torch.finfo(loss.dtype).tiny)
    return min(n_dead / k_aux, 1.0) * torch.where(variance > least, normalised, 0.0)


def power_penalty(values: Tensor, n_rows: int, total_variance: Tensor, power: float = 1.0) -> Tensor:
    """Mean over rows of sum_i |code_i / sqrt(V)|^p over the stored values of all rows; 0 without rows.

    Codes are measured in sqrt(V), so that the penalty has no unit, like `reconstruction`. Zeros pass no gradient
    (at p < 1 theirs would be infinite). Source: p = 1: Bricken et al. 2023; p < 1: Karvonen et al. 2024 (arXiv
    2408.00113).
    """
    sizes = values.abs() / total_variance.sqrt().to(values.dtype)
    if power == 1:
        powers = sizes
    else:
        fires = sizes > 0
        powers = sizes.where(fires, 1).pow(power).where(fires, 0)
    return (powers.sum(dtype=torch.float64) / max(n_rows, 1)).to(values.dtype)


def gaussian_kl_NF(mean_NF: Tensor, logvar_NF: Tensor | None, total_variance: Tensor) -> Tensor:
    """KL(N(mean, var) || N(0, 1)) of each latent, in nats: 1/2 (mean^2 / V + var - 1 - ln var).

    The mean is measured in sqrt(V); logvar is already without unit, None stands for var = 1 (then only the first
    term is left). Source: Kingma & Welling 2014 (arXiv 1312.6114), appendix B.
    """
    squares_NF = mean_NF.square() / total_variance.to(mean_NF.dtype)
    if logvar_NF is None:
        return squares_NF / 2
    return (squares_NF + logvar_NF.exp() - 1 - logvar_NF) / 2
