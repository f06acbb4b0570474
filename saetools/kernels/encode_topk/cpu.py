"""Top-k encoding in compiled loops: products by BLAS in row chunks, selection and rescoring here."""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import inline, parallel, prange
from saetools.kernels.encode_topk.screen import low_precision, screen_rows
from saetools.kernels.encode_topk.select import (
    GROUPS,
    collect,
    emit,
    group_maxima,
    lower_bound,
)
from saetools.kernels.workspace import Workspace

BLOCK = 16
"""Rows per task: the unit that threads share."""
CHUNK_ROWS = 1024
"""Rows per product: each call reorders W anew, which costs 8 % at 512 rows and nothing to be seen at 1024."""
LOW_CHUNK_ROWS = 2048
"""The same in bf16, of as many bytes: there reordering weighs more, and 2048 rows at once take 12 % less than 1024."""


@inline
def take_all(row, b, found, scores):
    for f in range(row.shape[0]):
        found[f] = f
        scores[f] = row[f] + b[f]
    return row.shape[0]


@parallel
def select_rows(pre, b, k, relu, first, values, indices):
    """The k largest of each row of pre + b, pre [C, F] float32."""
    C, F = pre.shape
    n = F // GROUPS
    tiny = np.float32(1e-45)
    for task in prange((C + BLOCK - 1) // BLOCK):
        m = np.empty(n, np.float32)
        groups = np.empty(n + 1, np.int32)
        found, scores = np.empty(F + 1, np.int32), np.empty(F + 1, np.float32)
        keys = np.empty(F + 1, np.int32)
        guess = np.float32(np.inf)
        for r in range(task * BLOCK, min(C, (task + 1) * BLOCK)):
            row = pre[r]
            total = group_maxima(row, b, m)
            if not np.isfinite(total):
                c = take_all(row, b, found, scores)
            else:
                bound = lower_bound(m, n, k, guess) if n >= k else np.float32(-np.inf)
                guess = bound
                if relu and bound < tiny:
                    bound = tiny
                c = collect(row, b, m, bound, groups, found, scores)
            emit(scores, keys, found, c, k, relu, first, values[r], indices[r])


def encode_topk(
    x_ND: Tensor, W_FD: Tensor, b_F: Tensor, k: int, relu: bool, screen: bool, first: int, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """values_NK, indices_NK as in the reference; `screen`: candidates by a bf16 product (`screen.py`)."""
    N, F = len(x_ND), len(W_FD)
    values_NK = torch.empty(N, k, dtype=torch.float32, device="cpu")
    indices_NK = torch.empty(N, k, dtype=torch.int32, device="cpu")
    if screen and GROUPS * k <= F:
        _screened(x_ND, W_FD, b_F, k, relu, first, workspace, values_NK, indices_NK)
        return values_NK, indices_NK
    for start in range(0, N, CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        x_CD = x_ND[rows]
        pre_CF = workspace.get("encode.pre", (len(x_CD), F))
        torch.mm(x_CD, W_FD.T, out=pre_CF)  # the bias is added where the rows are read
        with exclusive():
            select_rows(pre_CF.numpy(), b_F.numpy(), k, relu, first, values_NK[rows].numpy(), indices_NK[rows].numpy())
    return values_NK, indices_NK


def select(score_CF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest positive scores of each row and their features; unused slots are score 0, feature 0."""
    C, F = score_CF.shape
    scores_CK = torch.empty(C, k, dtype=torch.float32, device="cpu")
    indices_CK = torch.empty(C, k, dtype=torch.int32, device="cpu")
    with exclusive():
        select_rows(score_CF.numpy(), np.zeros(F, np.float32), k, True, 0, scores_CK.numpy(), indices_CK.numpy())
    return scores_CK, indices_CK


def _screened(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    relu: bool,
    first: int,
    workspace: Workspace,
    values_NK: Tensor,
    indices_NK: Tensor,
) -> None:
    N, F = len(x_ND), len(W_FD)
    low_x, low_W = low_precision(x_ND, W_FD, b_F, workspace)
    for start in range(0, N, LOW_CHUNK_ROWS):
        rows = slice(start, start + LOW_CHUNK_ROWS)
        pre_CF = workspace.get("encode.low_pre", (len(low_x[rows]), F), torch.bfloat16)
        torch.mm(low_x[rows], low_W.T, out=pre_CF)
        with exclusive():
            screen_rows(
                *(pre_CF.view(torch.int16).numpy(), x_ND[rows].numpy(), W_FD.numpy(), b_F.numpy()),
                *(k, relu, first, values_NK[rows].numpy(), indices_NK[rows].numpy()),
            )
