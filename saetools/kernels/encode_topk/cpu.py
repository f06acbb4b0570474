"""Top-k encoding in compiled loops: products by BLAS in row chunks, selection and rescoring here."""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import inline, parallel, prange
from saetools.kernels.encode_topk.select import (
    collect,
    emit,
    group_count,
    group_maxima,
    lower_bound,
)
from saetools.kernels.workspace import Workspace

BLOCK = 16
"""Rows per task: the unit that threads share."""
CHUNK_ROWS = 512
"""Rows per float32 product: smaller ones pack W too often."""
SCREEN_CHUNK_ROWS = 1024
"""Rows per bf16 product: each call reorders W once."""


@inline
def take_all(row, found, scores):
    for f in range(row.shape[0]):
        found[f] = f
        scores[f] = row[f]
    return row.shape[0]


@parallel
def select_rows(pre, k, relu, first, values, indices):
    """The k largest of each row of pre [C, F], float32."""
    C, F = pre.shape
    G = group_count(F, k)
    n = F // G
    tiny = np.float32(1e-45)
    for task in prange((C + BLOCK - 1) // BLOCK):
        m = np.empty(n, np.float32)
        groups = np.empty(n + 1, np.int32)
        found, scores = np.empty(F + 1, np.int32), np.empty(F + 1, np.float32)
        keys = np.empty(F + 1, np.int32)
        guess = np.float32(np.inf)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            row = pre[r]
            total = group_maxima(row, G, m)
            if not np.isfinite(total):
                c = take_all(row, found, scores)
            else:
                bound = lower_bound(m, n, k, guess) if n >= k else np.float32(-np.inf)
                guess = bound
                if relu and bound < tiny:
                    bound = tiny
                c = collect(row, m, G, bound, groups, found, scores)
            emit(scores, keys, found, c, k, relu, first, values[r], indices[r])


@parallel
def screen_rows(pre, x, W, b, n_screen, k, relu, first, values, indices):
    """Candidates by pre [C, F], the int16 view of a bf16 product; the k best of them by float32 products of x and W.

    Not finite candidates cannot be ordered: such a row is rescored whole.
    """
    C, F = pre.shape
    D = x.shape[1]
    G = group_count(F, n_screen)
    n = F // G
    for task in prange((C + BLOCK - 1) // BLOCK):
        m = np.empty(n, np.int16)
        groups = np.empty(n + 1, np.int32)
        found, scores = np.empty(F + 1, np.int32), np.empty(F + 1, np.float32)
        keys = np.empty(F + 1, np.int32)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            row, xr = pre[r], x[r]
            bad = screen_maxima(row, G, m)
            bound = screen_bound(m, n, n_screen) if n >= n_screen else np.int16(-(2**15))
            if bad:
                bound = np.int16(-(2**15))
            c = screen_collect(row, m, G, bound, bad, groups, found)
            for q in range(c):
                w = W[found[q]]
                s = np.float32(0.0)
                for d in range(D):
                    s += xr[d] * w[d]
                scores[q] = s + b[found[q]]
            emit(scores, keys, found, c, k, relu, first, values[r], indices[r])


@inline
def order16(v):
    """int16 keys in the order of bf16 values, given by their bits."""
    return np.int16(v ^ ((v >> np.int16(15)) & np.int16(0x7FFF)))


@inline
def screen_maxima(row, G, m):
    """Group maxima of keys as in `group_maxima`; returns whether an element is not finite."""
    n = row.shape[0] // G
    bad = np.int16(0)
    for j in range(n):
        m[j] = np.int16(-(2**15))
    for i in range(G):
        part = row[i * n : (i + 1) * n]
        for j in range(n):
            v = part[j]
            bad |= np.int16((v & np.int16(0x7F80)) == np.int16(0x7F80))
            m[j] = max(m[j], order16(v))
    for j in range(G * n, row.shape[0]):
        bad |= np.int16((row[j] & np.int16(0x7F80)) == np.int16(0x7F80))
    return bad != 0


@inline
def screen_bound(m, n, k):
    """The k-th largest of m[:n], by bisection."""
    lo, hi = np.int32(-(2**15)), np.int32(2**15 - 1)
    while lo < hi:
        mid = np.int16((lo + hi + 1) >> 1)
        c = np.int32(0)
        for j in range(n):
            c += np.int32(m[j] >= mid)
        if c >= k:
            lo = np.int32(mid)
        else:
            hi = np.int32(mid) - 1
    return np.int16(lo)


@inline
def screen_collect(row, m, G, bound, everything, groups, found):
    n = row.shape[0] // G
    n_groups = 0
    for j in range(n):
        groups[n_groups] = j
        n_groups += np.int32(everything or m[j] >= bound)
    c = 0
    for q in range(n_groups):
        j = groups[q]
        for i in range(G):
            found[c] = i * n + j
            c += np.int32(everything or order16(row[i * n + j]) >= bound)
    for j in range(G * n, row.shape[0]):
        found[c] = j
        c += np.int32(everything or order16(row[j]) >= bound)
    return c


def encode_topk(
    x_ND: Tensor, W_FD: Tensor, b_F: Tensor, k: int, relu: bool, screen: int, first: int, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """values_NK, indices_NK as in the reference; `screen` as in the stock path."""
    N, F = len(x_ND), len(W_FD)
    values_NK = torch.empty(N, k)
    indices_NK = torch.empty(N, k, dtype=torch.int32)
    if screen and screen < F:
        _screened(x_ND, W_FD, b_F, k, relu, screen, first, workspace, values_NK, indices_NK)
        return values_NK, indices_NK
    for start in range(0, N, CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        x_CD = x_ND[rows]
        pre_CF = workspace.get("encode.pre", (len(x_CD), F))
        torch.addmm(b_F, x_CD, W_FD.T, out=pre_CF)
        with exclusive():
            select_rows(pre_CF.numpy(), k, relu, first, values_NK[rows].numpy(), indices_NK[rows].numpy())
    return values_NK, indices_NK


def _screened(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    relu: bool,
    screen: int,
    first: int,
    workspace: Workspace,
    values_NK: Tensor,
    indices_NK: Tensor,
) -> None:
    (N, D), F = x_ND.shape, len(W_FD)
    low_W = workspace.get("encode.low_W", (F, D), torch.bfloat16).copy_(W_FD)
    low_x = workspace.get("encode.low_x", (N, D), torch.bfloat16).copy_(x_ND)
    low_b = b_F.bfloat16()
    for start in range(0, N, SCREEN_CHUNK_ROWS):
        rows = slice(start, start + SCREEN_CHUNK_ROWS)
        pre_CF = workspace.get("encode.low_pre", (len(low_x[rows]), F), torch.bfloat16)
        torch.addmm(low_b, low_x[rows], low_W.T, out=pre_CF)
        with exclusive():
            screen_rows(
                pre_CF.view(torch.int16).numpy(),
                x_ND[rows].numpy(),
                W_FD.numpy(),
                b_F.numpy(),
                screen,
                k,
                relu,
                first,
                values_NK[rows].numpy(),
                indices_NK[rows].numpy(),
            )
