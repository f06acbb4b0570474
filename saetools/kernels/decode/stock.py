"""Decoding and its two gradients in stock torch operations."""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

CHUNK_ELEMENTS = 1 << 24
"""Gathered elements held at once while dots are taken."""


def gather_sum(values_M: Tensor, indices_M: Tensor, offsets_N1: Tensor, W_FD: Tensor) -> Tensor:
    """out_ND: sum over the slots of each row of value * W[index]."""
    if len(offsets_N1) == 1 or len(values_M) == 0:
        return W_FD.new_zeros(len(offsets_N1) - 1, W_FD.shape[1])
    return embedding_bag(
        indices_M.long(), W_FD, offsets_N1.long(), mode="sum", per_sample_weights=values_M, include_last_offset=True
    )


def gather_dot(indices_M: Tensor, rows_M: Tensor, g_ND: Tensor, W_FD: Tensor) -> Tensor:
    """dots_M: <g[row], W[index]> of each slot, chunk by chunk."""
    chunk = max(1, CHUNK_ELEMENTS // max(1, W_FD.shape[1]))
    parts = [
        (g_ND[rows.long()] * W_FD[indices.long()]).sum(1)
        for rows, indices in zip(rows_M.split(chunk), indices_M.split(chunk))
    ]
    return torch.cat(parts) if parts else g_ND.new_zeros(0)
