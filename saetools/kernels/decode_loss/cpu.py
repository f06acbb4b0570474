"""Decode, loss, residuals and code gradients in one compiled pass: each atom in use is read from memory once.

The dots are taken right after the sum, while the atoms of the row are still in the core's cache.
"""

import numpy as np
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import parallel, prange
from saetools.kernels.decode.cpu import add_rows, dot_rows
from saetools.kernels.workspace import Workspace

BLOCK = 16
"""Rows per task."""


@parallel
def decode_loss_rows(x, values, indices, offsets, W, b, groups, weights, loss, pull, dots):
    N, H, D = x.shape
    G = weights.shape[0]
    for task in prange((N + BLOCK - 1) // BLOCK):
        first, last = task * BLOCK, min(N, (task + 1) * BLOCK)
        longest = 0
        for n in range(first, last):
            longest = max(longest, offsets[n + 1] - offsets[n])
        atoms, slots = np.empty(longest, np.int32), np.empty(longest, np.int32)
        minus, found = np.empty(longest, np.float32), np.empty(longest, np.float32)
        start = np.empty(G + 1, np.int32)
        left = np.empty(D, np.float32)
        for n in range(first, last):
            c = 0
            for g in range(G):  # the slots in use, group by group
                start[g] = c
                for s in range(offsets[n], offsets[n + 1]):
                    dots[s] = dots[s] if g else np.float32(0.0)
                    if values[s] != 0 and groups[s] == g:
                        atoms[c], slots[c], minus[c] = indices[s], s, -values[s]
                        c += 1
            start[G] = c
            for d in range(D):
                left[d] = x[n, 0, d] - b[d]
            for g in range(G):
                if g > 0 and H > 1:
                    for d in range(D):
                        left[d] += x[n, g, d] - x[n, g - 1, d]
                add_rows(left, minus, atoms, start[g], start[g + 1], W)
                total, weight, out = np.float32(0.0), weights[g], pull[n, g]
                for d in range(D):
                    total += left[d] * left[d]
                    out[d] = left[d] * weight
                loss[n, g] = total
            for g in range(G - 2, -1, -1):
                for d in range(D):
                    pull[n, g, d] += pull[n, g + 1, d]
            for g in range(G):
                dot_rows(pull[n, g], atoms, start[g], start[g + 1], W, found)
            for q in range(c):
                dots[slots[q]] = found[q]


def decode_loss(
    x_NHD: Tensor,
    values_M: Tensor,
    indices_M: Tensor,
    offsets_N1: Tensor,
    W_FD: Tensor,
    b_D: Tensor,
    group_M: Tensor,
    weights_G: Tensor,
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    (N, _, D), G = x_NHD.shape, len(weights_G)
    loss_NG = workspace.get("decode_loss.loss", (N, G))
    pull_NGD = workspace.get("decode_loss.pull", (N, G, D))
    dots_M = workspace.get("decode_loss.dots", (len(values_M),))
    with exclusive():
        decode_loss_rows(
            x_NHD.numpy(),
            values_M.numpy(),
            indices_M.numpy(),
            offsets_N1.numpy(),
            W_FD.numpy(),
            b_D.numpy(),
            group_M.numpy(),
            weights_G.numpy(),
            loss_NG.numpy(),
            pull_NGD.numpy(),
            dots_M.numpy(),
        )
    return loss_NG, pull_NGD, dots_M
