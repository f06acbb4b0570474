"""Gather-sums and gather-dots over the rows of a matrix, in compiled loops.

Four rows are in flight at once: the sum is bound by the latency of their loads, not by arithmetic.
"""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import inline, parallel, prange

BLOCK = 16
"""Output rows per task."""


@inline
def add_rows(out, values, sources, start, stop, W):
    """out += sum over s in start..stop of values[s] * W[sources[s]]."""
    D = out.shape[0]
    s = start
    while s + 4 <= stop:
        v0, v1, v2, v3 = values[s], values[s + 1], values[s + 2], values[s + 3]
        w0, w1, w2, w3 = W[sources[s]], W[sources[s + 1]], W[sources[s + 2]], W[sources[s + 3]]
        for d in range(D):
            out[d] += (v0 * w0[d] + v1 * w1[d]) + (v2 * w2[d] + v3 * w3[d])
        s += 4
    while s < stop:
        v0, w0 = values[s], W[sources[s]]
        for d in range(D):
            out[d] += v0 * w0[d]
        s += 1


@inline
def dot_rows(g, sources, start, stop, W, dots):
    """dots[s] = <g, W[sources[s]]> for s in start..stop."""
    D = g.shape[0]
    s = start
    while s + 4 <= stop:
        w0, w1, w2, w3 = W[sources[s]], W[sources[s + 1]], W[sources[s + 2]], W[sources[s + 3]]
        s0 = s1 = s2 = s3 = np.float32(0.0)
        for d in range(D):
            v = g[d]
            s0 += v * w0[d]
            s1 += v * w1[d]
            s2 += v * w2[d]
            s3 += v * w3[d]
        dots[s], dots[s + 1], dots[s + 2], dots[s + 3] = s0, s1, s2, s3
        s += 4
    while s < stop:
        w0 = W[sources[s]]
        s0 = np.float32(0.0)
        for d in range(D):
            s0 += g[d] * w0[d]
        dots[s] = s0
        s += 1


@parallel
def gather_sum_rows(values, indices, offsets, W, out):
    N = offsets.shape[0] - 1
    for task in prange((N + BLOCK - 1) // BLOCK):
        for n in range(task * BLOCK, min(N, (task + 1) * BLOCK)):
            out[n, :] = np.float32(0.0)
            add_rows(out[n], values, indices, offsets[n], offsets[n + 1], W)


@parallel
def gather_dot_rows(indices, offsets, g, W, dots):
    N = offsets.shape[0] - 1
    for task in prange((N + BLOCK - 1) // BLOCK):
        for n in range(task * BLOCK, min(N, (task + 1) * BLOCK)):
            dot_rows(g[n], indices, offsets[n], offsets[n + 1], W, dots)


def gather_sum(values_M: Tensor, indices_M: Tensor, offsets_N1: Tensor, W_FD: Tensor) -> Tensor:
    """As in `stock`."""
    out_ND = torch.empty(len(offsets_N1) - 1, W_FD.shape[1], dtype=torch.float32, device="cpu")
    with exclusive():
        gather_sum_rows(values_M.numpy(), indices_M.numpy(), offsets_N1.numpy(), W_FD.numpy(), out_ND.numpy())
    return out_ND


def gather_dot(indices_M: Tensor, offsets_N1: Tensor, g_ND: Tensor, W_FD: Tensor) -> Tensor:
    """dots_M: <g[row], W[index]> of each slot."""
    dots_M = torch.empty(len(indices_M), dtype=torch.float32, device="cpu")
    with exclusive():
        gather_dot_rows(indices_M.numpy(), offsets_N1.numpy(), g_ND.numpy(), W_FD.numpy(), dots_M.numpy())
    return dots_M
