"""AuxK on compacted dead features: their rows gathered once, then dense products; no mask over all features."""

import torch
from torch import Tensor

from saetools.kernels.auxk import reference
from saetools.kernels.backend import Impl, operation, resolve
from saetools.kernels.backward_adam.problem import ExtraRows
from saetools.kernels.decode import scatter_rows
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import encode_topk
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace

SPARSE_ABOVE = 8
"""Dead features for each that AuxK keeps, above which gathers beat dense products (measured on a CPU)."""
TRITON_CAPACITY = 32768
"""Dead features that AuxK helps on a GPU at most: its products, and tensors of rows by the dead, grow with them."""


@torch.no_grad()
@operation
def auxk(
    x_ND: Tensor,
    residual_ND: Tensor,
    W_enc_FD: Tensor,
    b_enc_F: Tensor,
    W_dec_FD: Tensor,
    dead_A: Tensor,
    k_aux: int,
    weight: float,
    *,
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, ExtraRows | None]:
    """(loss, gradient rows of weight * loss) of the dead features `dead_A` (int64, distinct).

    e' = sum of the min(k_aux, A) largest ReLU(pre) among the dead, times W_dec; no bias
    loss = min(A / k_aux, 1) * mean_n ||residual - e'||^2 / mean_n ||residual - mean_n residual||^2

    x_ND: rows less b_dec; the gradient with respect to b_dec is that of the shift of x alone. The residual is a
    constant. (0, None) where nothing is dead or the residual does not vary but for rounding. Definition and source:
    Gao et al. 2024 (arXiv 2406.04093), appendix A.2; as `functional.losses.auxk`, which the contract suite compares.
    """
    nothing = torch.zeros((), dtype=x_ND.dtype, device=x_ND.device), None
    n_dead, N = len(dead_A), max(len(x_ND), 1)
    if n_dead == 0 or len(x_ND) == 0:
        return nothing
    mean_D = residual_ND.mean(0)
    variance = float((residual_ND - mean_D).square().sum(1).sum(dtype=torch.float64)) / N
    square = variance + float(mean_D.square().sum(dtype=torch.float64))  # mean of ||residual||^2
    if variance <= 100 * torch.finfo(residual_ND.dtype).eps ** 2 * square:
        return nothing
    rows = W_enc_FD[dead_A], b_enc_F[dead_A], W_dec_FD[dead_A]
    chosen = resolve(impl, x_ND, *rows, triton=n_dead <= TRITON_CAPACITY)
    if chosen == "triton":
        from saetools.kernels.auxk import triton

        matrices = (x_ND, residual_ND.contiguous(), W_enc_FD, b_enc_F, W_dec_FD)
        loss, gradients = triton.auxk(*matrices, dead_A, k_aux, weight)
        extra = ExtraRows(dead_A, gradients[0], gradients[1], gradients[2], gradients[3])
    elif chosen == "reference":
        loss, extra = reference.auxk(x_ND, residual_ND, *rows, k_aux, weight)
    else:
        factor = min(n_dead / k_aux, 1.0) / (N * variance)
        form = _sparse if n_dead > SPARSE_ABOVE * k_aux else _dense
        loss, extra = form(x_ND, residual_ND, *rows, min(k_aux, n_dead), factor, weight, workspace or Workspace(), impl)
    return loss, ExtraRows(dead_A, extra.W_enc_AD, extra.W_dec_AD, extra.b_enc_A, extra.b_dec_D)


def _dense(
    x_ND: Tensor,
    residual_ND: Tensor,
    W_enc_AD: Tensor,
    b_enc_A: Tensor,
    W_dec_AD: Tensor,
    k: int,
    factor: float,
    weight: float,
    workspace: Workspace,
    impl: Impl,
) -> tuple[Tensor, ExtraRows]:
    """Five products of the size N A D: pre, recon, and the three gradients."""
    N, A = len(x_ND), len(W_enc_AD)
    values_NK, indices_NK = encode_topk(x_ND, W_enc_AD, b_enc_A, k, workspace=workspace, impl=impl)
    code_NA = torch.zeros(N, A, dtype=x_ND.dtype, device=x_ND.device)
    code_NA.scatter_add_(1, indices_NK.long(), values_NK)
    error_ND = torch.addmm(residual_ND, code_NA, W_dec_AD, alpha=-1)
    loss = factor * error_ND.square().sum(1).sum(dtype=torch.float64)
    error_ND.mul_(-2 * factor * weight)
    dW_dec_AD = code_NA.T @ error_ND
    dcode_NA = torch.where(code_NA > 0, error_ND @ W_dec_AD.T, 0)
    db_enc_A = dcode_NA.sum(0)
    extra = ExtraRows(torch.arange(A), dcode_NA.T @ x_ND, dW_dec_AD, db_enc_A, -(db_enc_A @ W_enc_AD))
    return loss.to(x_ND.dtype), extra


def _sparse(
    x_ND: Tensor,
    residual_ND: Tensor,
    W_enc_AD: Tensor,
    b_enc_A: Tensor,
    W_dec_AD: Tensor,
    k: int,
    factor: float,
    weight: float,
    workspace: Workspace,
    impl: Impl,
) -> tuple[Tensor, ExtraRows]:
    """One product of the size N A D and gathers of N k rows: for very many dead features."""
    chosen = resolve(impl, x_ND, W_enc_AD)
    code = Sparse.fixed(*encode_topk(x_ND, W_enc_AD, b_enc_A, k, workspace=workspace, impl=impl))
    no_bias_D = torch.zeros_like(x_ND[0])
    own = Workspace()  # the caller's holds the residual that is read here
    loss_NG, pull_NGD, dots_M = decode_loss(residual_ND, code, W_dec_AD, no_bias_D, workspace=own, impl=impl)
    scale, rows_M = 2 * factor * weight, code.rows()
    dvalues_M = dots_M * -scale
    db_enc_A = torch.zeros_like(b_enc_A).index_add_(0, code.indices_M.long(), dvalues_M)
    extra = ExtraRows(
        torch.arange(len(W_enc_AD)),
        scatter_rows(dvalues_M, code.indices_M, rows_M, x_ND, len(W_enc_AD), chosen),
        scatter_rows(code.values_M * -scale, code.indices_M, rows_M, pull_NGD[:, 0], len(W_enc_AD), chosen),
        db_enc_A,
        -(db_enc_A @ W_enc_AD),
    )
    return (factor * loss_NG.sum(dtype=torch.float64)).to(x_ND.dtype), extra


__all__ = ["auxk"]
