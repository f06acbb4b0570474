"""The two affine maps that most dictionaries share: x -> pre and code -> recon."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from saetools.functional.selection import masked_code

DENSE_SHARE = 8
"""More than F / 8 slots per row and a dense product beats the gather-sum (CPU, D = 512, F = 8192, with gradients)."""


def preactivations(x_ND: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor, b_dec_D: Tensor) -> Tensor:
    """pre_NF = (x - b_dec) W_enc^T + b_enc.

    The bias that the decoder adds is taken off first, so that the code speaks of what the bias does not.
    Source: Gao et al. 2024 (arXiv 2406.04093), section 2.3.
    """
    return _Preactivations.apply(x_ND, W_enc_FD, b_enc_F, b_dec_D)


class _Preactivations(torch.autograd.Function):
    """The gradient of b_dec is that of a sum over rows, -(sum_n dL/dpre_n) W_enc: no product over rows for it."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor, b_dec_D: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, W_enc_FD, b_dec_D)
        return functional.linear(x_ND - b_dec_D, W_enc_FD, b_enc_F)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, W_enc_FD, b_dec_D = ctx.saved_tensors
        u_ND = x_ND - b_dec_D  # anew: a second derivative goes by it
        for_x, for_W, for_b_enc, for_b_dec = ctx.needs_input_grad
        (grad_NF,) = gradients  # of lower precision than the weights under autocast
        sum_F = grad_NF.sum(0, dtype=W_enc_FD.dtype) if for_b_enc or for_b_dec else None
        return (
            (grad_NF @ W_enc_FD.to(grad_NF.dtype)).to(u_ND.dtype) if for_x else None,
            (grad_NF.T @ u_ND.to(grad_NF.dtype)).to(W_enc_FD.dtype) if for_W else None,
            sum_F if for_b_enc else None,
            None if sum_F is None or not for_b_dec else -(sum_F @ W_enc_FD),
        )


def rectified_product(code_NF: Tensor, W_FD: Tensor) -> Tensor:
    """code W, for codes whose zeros pass no gradient (a rectifier's): gathered where few of them are not zero.

    Values and gradients of the rest are those of the dense product. Half of all entries gathered cost several times
    that product, which is therefore taken where more than an eighth is not zero, as when training begins.
    """
    kept_NF = code_NF != 0
    if dense_is_faster(int(kept_NF.sum()), *code_NF.shape):
        return code_NF @ W_FD
    values_M, indices_M, offsets_N1 = masked_code(code_NF, kept_NF)
    return gather_sum(values_M, indices_M, W_FD, offsets_N1)


def gather_sum(values: Tensor, indices: Tensor, W_dec_FD: Tensor, offsets_N1: Tensor | None = None) -> Tensor:
    """recon_ND[n] = sum over the slots of row n of value * W_dec[index]; differentiable in values and W_dec.

    values, indices: [N, K], or [M] with offsets [N + 1] (the two layouts of SparseCode). Cost 2 * slots * D, where
    the dense product costs 2 * N * F * D.
    """
    if offsets_N1 is None and values.shape[1] == 0:
        return values.new_zeros(values.shape[0], W_dec_FD.shape[1])
    values = values.to(W_dec_FD.dtype)
    if offsets_N1 is None:
        return functional.embedding_bag(indices, W_dec_FD, per_sample_weights=values, mode="sum")
    return functional.embedding_bag(
        indices,
        W_dec_FD,
        offsets=offsets_N1.to(indices.dtype),
        per_sample_weights=values,
        mode="sum",
        include_last_offset=True,
    )


def dense_is_faster(n_slots: int, n_rows: int, n_features: int) -> bool:
    """Whether a code with this many slots is better decoded by a dense product."""
    return n_slots * DENSE_SHARE > n_rows * n_features


def scatter_rows(values_NK: Tensor, indices_NK: Tensor, n_columns: int) -> Tensor:
    """dense_NF with the values at their columns, zeros elsewhere; differentiable in the values."""
    dense = torch.zeros(values_NK.shape[0], n_columns, dtype=values_NK.dtype, device=values_NK.device)
    return dense.scatter_add(1, indices_NK.long(), values_NK)
