"""Orthogonal matching pursuit in compiled loops over a Gram matrix: the recursion of `stock`, row by row in cache."""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import parallel, prange
from saetools.kernels.decode.cpu import add_rows
from saetools.kernels.encode_topk.select import key_of
from saetools.kernels.omp.reference import DEPENDENT
from saetools.kernels.workspace import Workspace

CHUNK_ROWS = 512
LEAST = np.int32(-(2**31))


@parallel
def omp_rows(x, correlation, gram, n_steps, absolute, tolerance, dependent, values, indices):
    C, F = correlation.shape
    D = x.shape[1]
    for task in prange((C + 3) // 4):
        P, factor = np.empty((n_steps, F), np.float32), np.empty((n_steps, n_steps), np.float32)
        z, minus, order = np.empty(n_steps, np.float32), np.empty(n_steps, np.float32), np.arange(n_steps)
        for r in range(task * 4, min(C, task * 4 + 4)):
            c = correlation[r]
            values[r, :], indices[r, :] = np.float32(0.0), np.int32(0)
            energy = np.float32(0.0)
            for d in range(D):
                energy += x[r, d] * x[r, d]
            done = 0
            for t in range(n_steps):
                for u in range(t):
                    c[indices[r, u]] = np.float32(0.0)  # the residual is orthogonal to it; rounding aside
                best = LEAST
                for f in range(F):
                    best = max(best, key_of(abs(c[f]) if absolute else c[f]))
                if best <= 0 or energy <= tolerance * tolerance:
                    break
                j = 0
                while key_of(abs(c[j]) if absolute else c[j]) != best:
                    j += 1
                if not np.isfinite(c[j]):
                    values[r, 0] = np.nan
                    done = 0
                    break
                square = np.float32(0.0)
                for u in range(t):
                    factor[t, u] = P[u, j]
                    square += P[u, j] * P[u, j]
                d2 = gram[j, j] - square
                if not d2 > dependent * gram[j, j]:
                    break
                inverse = np.float32(1.0) / np.sqrt(d2)
                factor[t, t] = np.sqrt(d2)
                for u in range(t):
                    minus[u] = -factor[t, u] * inverse
                p, g = P[t], gram[j]
                for f in range(F):
                    p[f] = g[f] * inverse
                add_rows(p, minus, order, 0, t, P)
                z[t] = c[j] * inverse
                for f in range(F):
                    c[f] -= z[t] * p[f]
                energy -= z[t] * z[t]
                indices[r, t] = j
                done = t + 1
            for t in range(done - 1, -1, -1):  # L^T values = z
                s = z[t]
                for u in range(t + 1, done):
                    s -= factor[u, t] * values[r, u]
                values[r, t] = s / factor[t, t]


def omp(
    x_ND: Tensor, W_FD: Tensor, gram_FF: Tensor, n_steps: int, rule: str, tolerance: float, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """As in `stock`; gram_FF may be the larger buffer of a `Gram`."""
    N, F = len(x_ND), len(W_FD)
    values_NK = torch.zeros(N, n_steps, dtype=torch.float32, device="cpu")
    indices_NK = torch.zeros(N, n_steps, dtype=torch.int32, device="cpu")
    for start in range(0, N, CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        correlation_CF = workspace.get("pursuit.correlation", (len(x_ND[rows]), F))
        torch.mm(x_ND[rows], W_FD.T, out=correlation_CF)
        with exclusive():
            omp_rows(
                *(x_ND[rows].numpy(), correlation_CF.numpy(), gram_FF.numpy(), n_steps, rule == "absolute"),
                *(np.float32(tolerance), np.float32(DEPENDENT), values_NK[rows].numpy(), indices_NK[rows].numpy()),
            )
    return values_NK, indices_NK
