"""Matching pursuit in compiled loops: the correlations of a row stay in the core's cache for all its steps.

With the Gram matrix a step is one pass over them, c -= v G[i], which also finds the next maximum. The maximum is
kept for n strided groups (as in top-k selection), so that the pass is plain vector code.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import bf16_units, exclusive
from saetools.kernels.compiled import inline, parallel, prange
from saetools.kernels.decode.cpu import add_rows
from saetools.kernels.encode_topk.select import key_of
from saetools.kernels.matching_pursuit.screened import screened_step, shorten_plain
from saetools.kernels.workspace import Workspace

CHUNK_ROWS = 512
LOW_CHUNK_ROWS = 1024
"""Rows per bf16 product: as many bytes of scores, and 11 % less time than with 512."""
BACKWARD_ROWS = 64
"""Rows whose N K D contributions to dW are held at once."""
LEAST = np.int32(-(2**31))


@inline
def drop(c, m, i, absolute, least):
    """Take atom i out: its correlation becomes `least`, and the maximum of its group is found again."""
    n = m.shape[0]
    c[i] = least
    j = i % n
    m[j] = -np.inf
    for f in range(j, c.shape[0], n):
        m[j] = max(m[j], abs(c[f]) if absolute else c[f])


@inline
def reduce_correlations(c, v, g, m, absolute):
    """c -= v g, and m[j] = the greatest (absolute: of |c|) of c[j], c[j + n], c[j + 2 n], ..."""
    F, n = c.shape[0], m.shape[0]
    for j in range(n):
        m[j] = -np.inf
    for start in range(0, F, n):
        part, atom = c[start : min(F, start + n)], g[start : min(F, start + n)]
        if absolute:
            for j in range(part.shape[0]):
                q = part[j] - v * atom[j]
                part[j] = q
                m[j] = max(m[j], abs(q))
        else:
            for j in range(part.shape[0]):
                q = part[j] - v * atom[j]
                part[j] = q
                m[j] = max(m[j], q)


@inline
def best_atom(c, m, absolute):
    """The first atom with the greatest score (NaN is greatest), and that score's key."""
    F, n = c.shape[0], m.shape[0]
    best = LEAST
    for j in range(n):
        best = max(best, key_of(m[j]))
    i = F
    for j in range(n):
        if key_of(m[j]) == best:
            for f in range(j, F, n):
                q = abs(c[f]) if absolute else c[f]
                if key_of(q) == best and f < i:
                    i = f
    return i, best


@inline
def pursue(c, gram, m, n_steps, absolute, nonnegative, tolerance, reselect, energy, values, indices):
    """The steps of one row whose correlations are c; gram is [capacity, capacity], c uses its first F columns."""
    F = c.shape[0]
    out = -np.inf if not (absolute or nonnegative) else np.float32(0.0)
    v, g = np.float32(0.0), c
    for t in range(n_steps):
        reduce_correlations(c, v, g, m, absolute)
        if not reselect:
            for u in range(t):
                drop(c, m, indices[u], absolute, out)
        i, best = best_atom(c, m, absolute)
        stopped = energy <= tolerance * tolerance or i == F or (nonnegative and best <= 0) or (absolute and best == 0)
        if stopped or not np.isfinite(c[i]):
            if not stopped:
                values[t] = np.nan
            return
        v, g = c[i], gram[i]
        values[t], indices[t] = v, i
        energy -= v * v * (np.float32(2.0) - g[i])


@parallel
def pursue_rows(x, correlation, gram, n_steps, absolute, nonnegative, tolerance, reselect, values, indices):
    C, F = correlation.shape
    D = x.shape[1]
    for task in prange((C + 3) // 4):
        m = np.empty((F + 15) // 16, np.float32)
        for r in range(task * 4, min(C, task * 4 + 4)):
            energy = np.float32(0.0)
            for d in range(D):
                energy += x[r, d] * x[r, d]
            values[r, :], indices[r, :] = np.float32(0.0), np.int32(0)
            pursue(
                correlation[r], gram, m, n_steps, absolute, nonnegative, tolerance, reselect, energy, values[r],
                indices[r],
            )  # fmt: skip


@parallel
def one_step(correlation, W, t, absolute, nonnegative, tolerance, reselect, going, values, indices, residual):
    """A step for rows whose correlations were computed anew."""
    C, F = correlation.shape
    D = W.shape[1]
    out = -np.inf if not (absolute or nonnegative) else np.float32(0.0)
    for task in prange((C + 15) // 16):
        m = np.empty((F + 15) // 16, np.float32)
        for r in range(task * 16, min(C, task * 16 + 16)):
            if not going[r]:
                continue
            c, left = correlation[r], residual[r]
            reduce_correlations(c, np.float32(0.0), c, m, absolute)
            if not reselect:
                for u in range(t):
                    drop(c, m, indices[r, u], absolute, out)
            i, best = best_atom(c, m, absolute)
            energy = np.float32(0.0)
            for d in range(D):
                energy += left[d] * left[d]
            stops = (nonnegative and best <= 0) or (absolute and best == 0)
            if energy <= tolerance * tolerance or i == F or stops:
                going[r] = False
                continue
            v, w = c[i], W[i]
            values[r, t], indices[r, t] = v, i
            for d in range(D):
                left[d] -= v * w[d]


@parallel
def final_residual(x, values, indices, W, residual):
    N, K = values.shape
    for task in prange((N + 15) // 16):
        minus = np.empty(K, np.float32)
        for r in range(task * 16, min(N, task * 16 + 16)):
            for t in range(K):
                minus[t] = -values[r, t]
            residual[r, :] = x[r]
            add_rows(residual[r], minus, indices[r], 0, K, W)


@parallel
def backward_rows(residual, values, indices, W, dvalues, lam, parts):
    """lam <- dx; parts[n, t] = the contribution of slot t of row n to dW (recursion: see `stock.backward`)."""
    C, K = values.shape
    D = W.shape[1]
    for r in prange(C):
        after = residual[r].copy()
        lam_r = lam[r]
        for t in range(K - 1, -1, -1):
            v, w, part = values[r, t], W[indices[r, t]], parts[r * K + t]
            if v == 0:
                part[:] = np.float32(0.0)
                continue
            s = np.float32(0.0)
            for d in range(D):
                s += lam_r[d] * w[d]
            s = dvalues[r, t] - s
            for d in range(D):
                before = after[d] + v * w[d]
                part[d] = s * before - v * lam_r[d]
                lam_r[d] += s * w[d]
                after[d] = before


@parallel
def add_parts(parts, order, features, starts, out):
    """out[features[q]] += the parts of that feature, in their order."""
    D = out.shape[1]
    for q in prange(features.shape[0]):
        row = out[features[q]]
        for s in range(starts[q], starts[q + 1]):
            part = parts[order[s]]
            for d in range(D):
                row[d] += part[d]


class _Recomputed:
    """Steps by float32 products of the residual."""

    def __init__(self, W_FD: Tensor, workspace: Workspace) -> None:
        self.W_FD, self.workspace = W_FD, workspace

    def __call__(self, residual_CD: Tensor, t: int, *rest: Any) -> None:
        correlation_CF = self.workspace.get("pursuit.correlation", (len(residual_CD), len(self.W_FD)))
        torch.mm(residual_CD, self.W_FD.T, out=correlation_CF)
        with exclusive():
            one_step(correlation_CF.numpy(), self.W_FD.numpy(), t, *rest, residual_CD.numpy())


class _Screened:
    """Steps by bf16 products of the residual, certified in float32."""

    def __init__(self, W_FD: Tensor, workspace: Workspace) -> None:
        self.W_FD, self.workspace = W_FD, workspace
        self.no_bias = np.zeros(len(W_FD), np.float32)
        low_W, whole, _, lost = self._shortened("W", W_FD)
        self.low_W_DF = workspace.get("pursuit.low_W_DF", (W_FD.shape[1], len(W_FD)), torch.bfloat16)
        self.low_W_DF.copy_(low_W.T)  # once, where every product would reorder it
        sums = 4.0 * W_FD.shape[1] * 2.0**-23  # four times what a float32 sum of D products can lose
        self.whole = float(whole.max(initial=0.0))
        self.lost = float(lost.max(initial=0.0)) + sums * self.whole

    def _shortened(self, name: str, rows_ND: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
        low = self.workspace.get(f"pursuit.low_{name}", tuple(rows_ND.shape), torch.int16)
        norms = [np.empty(len(rows_ND), np.float32) for _ in range(3)]
        with exclusive():
            shorten_plain(rows_ND.numpy(), rows_ND.view(torch.int32).numpy(), low.numpy(), *norms)
        return low.view(torch.bfloat16), norms[0], norms[1], norms[2]

    def __call__(self, residual_CD: Tensor, t: int, *rest: Any) -> None:
        low_r, _, short, lost = self._shortened("r", residual_CD)
        score_CF = self.workspace.get("pursuit.score", (len(residual_CD), len(self.W_FD)), torch.bfloat16)
        torch.mm(low_r, self.low_W_DF, out=score_CF)
        slacks = ((lost * self.whole + short * self.lost) * 1.001).astype(np.float32)
        with exclusive():
            screened_step(
                *(score_CF.view(torch.int16).numpy(), self.W_FD.numpy(), self.no_bias, slacks, t),
                *(*rest, residual_CD.numpy()),
            )


def matching_pursuit(
    x_ND: Tensor,
    W_FD: Tensor,
    gram_FF: Tensor | None,
    n_steps: int,
    rule: str,
    tolerance: float,
    reselect: bool,
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor]:
    """As in `stock`; gram_FF may be the larger buffer of a `Gram`."""
    N, F = len(x_ND), len(W_FD)
    values_NK = torch.zeros(N, n_steps, dtype=torch.float32, device="cpu")
    indices_NK = torch.zeros(N, n_steps, dtype=torch.int32, device="cpu")
    residual_ND = torch.empty_like(x_ND)
    options = (rule == "absolute", rule == "nonnegative", np.float32(tolerance), reselect)
    W = W_FD.numpy()
    step: _Recomputed | _Screened | None = None
    if gram_FF is None:
        screened = _Screened(W_FD, workspace) if bf16_units() else None
        step = screened if screened and np.isfinite(screened.whole) else _Recomputed(W_FD, workspace)
    chunk = LOW_CHUNK_ROWS if isinstance(step, _Screened) else CHUNK_ROWS
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        x_CD = x_ND[rows]
        x, values, indices, residual = (t[rows].numpy() for t in (x_ND, values_NK, indices_NK, residual_ND))
        if step is None:
            assert gram_FF is not None
            correlation_CF = workspace.get("pursuit.correlation", (len(x_CD), F))
            torch.mm(x_CD, W_FD.T, out=correlation_CF)
            with exclusive():
                pursue_rows(x, correlation_CF.numpy(), gram_FF.numpy(), n_steps, *options, values, indices)
        else:
            residual_ND[rows] = x_CD
            going = np.ones(len(x_CD), np.bool_)
            for t in range(n_steps):
                step(residual_ND[rows], t, *options, going, values, indices)
        with exclusive():
            final_residual(x, values, indices, W, residual)
    return values_NK, indices_NK, residual_ND


def backward(
    residual_ND: Tensor, values_NK: Tensor, indices_NK: Tensor, W_FD: Tensor, dvalues_NK: Tensor, dresidual_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """As in `stock`; memory beyond dW is that of a few rows."""
    (N, K), D = values_NK.shape, W_FD.shape[1]
    lam_ND, dW_FD = dresidual_ND.clone(), torch.zeros_like(W_FD)
    parts = np.empty((min(N, BACKWARD_ROWS) * K, D), np.float32)
    for start in range(0, N, BACKWARD_ROWS):
        rows = slice(start, start + BACKWARD_ROWS)
        columns = (t[rows].numpy() for t in (residual_ND, values_NK, indices_NK))
        flat = indices_NK[rows].reshape(-1).numpy()
        order = np.argsort(flat, kind="stable")
        features, firsts = np.unique(flat[order], return_index=True)
        with exclusive():
            backward_rows(*columns, W_FD.numpy(), dvalues_NK[rows].numpy(), lam_ND[rows].numpy(), parts)
            add_parts(parts, order, features, np.append(firsts, len(order)), dW_FD.numpy())
    return lam_ND, dW_FD
