"""The two affine maps that most dictionaries share: x -> pre and code -> recon."""

import torch
from torch import Tensor
from torch.nn import functional

DENSE_SHARE = 8
"""More than F / 8 slots per row and a dense product beats the gather-sum (CPU, D = 512, F = 8192, with gradients)."""


def preactivations(x_ND: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor, b_dec_D: Tensor) -> Tensor:
    """pre_NF = (x - b_dec) W_enc^T + b_enc.

    The bias that the decoder adds is taken off first, so that the code speaks of what the bias does not.
    Source: Gao et al. 2024 (arXiv 2406.04093), section 2.3.
    """
    return functional.linear(x_ND - b_dec_D, W_enc_FD, b_enc_F)


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
