"""Decoding in plain torch: the dense product that the gather is compared with."""

import torch
from torch import Tensor


def decode(values_M: Tensor, indices_M: Tensor, rows_M: Tensor, n_rows: int, W_FD: Tensor) -> Tensor:
    """recon_ND = code W, with the code made dense; differentiable in values and W."""
    place = (rows_M.long(), indices_M.long())
    code_NF = torch.zeros(n_rows, len(W_FD), dtype=W_FD.dtype, device=W_FD.device)
    return code_NF.index_put(place, values_M.to(W_FD.dtype), accumulate=True) @ W_FD


def gather_dot(indices_M: Tensor, rows_M: Tensor, g_ND: Tensor, W_FD: Tensor) -> Tensor:
    """dots_M: <g[row], W[index]> of each slot."""
    return (g_ND @ W_FD.T)[rows_M.long(), indices_M.long()]
