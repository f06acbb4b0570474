"""Top-k encoding in stock torch operations, row chunk by row chunk: what runs where numba does not."""

import torch
from torch import Tensor

from saetools.kernels.decode.stock import CHUNK_ELEMENTS as GATHERED_ELEMENTS
from saetools.kernels.workspace import Workspace

CHUNK_ELEMENTS = 1 << 22
"""Pre-activations held at once: 16 MB in float32."""


def encode_topk(
    x_ND: Tensor, W_FD: Tensor, b_F: Tensor, k: int, relu: bool, screen: int, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """values_NK, indices_NK as in the reference. `screen` > 0: that many candidates are chosen by a bf16 product
    and rescored in x's dtype; 0: chosen by the product itself.
    """
    (N, D), F = x_ND.shape, len(W_FD)
    values_NK = x_ND.new_empty(N, k)
    indices_NK = torch.empty(N, k, dtype=torch.int32, device=x_ND.device)
    gathered = max(1, min(screen, F) * D)  # elements of W, for each row
    chunk = max(1, min(N, CHUNK_ELEMENTS // max(F, 1), GATHERED_ELEMENTS // gathered))
    low = (W_FD.bfloat16(), b_F.bfloat16()) if screen else None
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        x_CD = x_ND[rows]
        if low:
            pre_CF = torch.addmm(low[1], x_CD.bfloat16(), low[0].T)
            _, found = lowest_ties(pre_CF, None, min(screen, F))
            scores = torch.bmm(W_FD[found], x_CD.unsqueeze(2)).squeeze(2) + b_F[found]
        else:
            scores, found = preactivations(x_CD, W_FD, b_F, workspace), None
        values, chosen = lowest_ties(scores, found, k)
        values_NK[rows], indices_NK[rows] = values, chosen.int()
    if relu:
        values_NK.relu_()
        indices_NK.masked_fill_(values_NK == 0, 0)
    return values_NK, indices_NK


def preactivations(x_CD: Tensor, W_FD: Tensor, b_F: Tensor, workspace: Workspace) -> Tensor:
    """pre_CF of a row chunk, on the CPU in memory that is there."""
    if x_CD.device.type != "cpu":
        return torch.addmm(b_F, x_CD, W_FD.T)
    out = workspace.get("encode.pre", (len(x_CD), len(W_FD)), x_CD.dtype)
    return torch.addmm(b_F, x_CD, W_FD.T, out=out)


def lowest_ties(scores: Tensor, found: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row and their features; where the cut falls among equal scores, the lowest features win."""
    extra = min(k + 1, scores.shape[1])
    values, places = torch.topk(scores, extra)
    features = places if found is None else found.gather(1, places)
    if extra > k:
        cut = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
        if len(cut):
            by_feature = torch.arange(scores.shape[1], device=scores.device).expand(len(cut), -1)
            if found is not None:
                by_feature, order = found[cut].sort(dim=1)
                rows = scores[cut].gather(1, order)
            else:
                rows = scores[cut]
            order = torch.sort(rows, dim=1, descending=True, stable=True).indices[:, :extra]
            values[cut], features[cut] = rows.gather(1, order), by_feature.gather(1, order)
    return values[:, :k], features[:, :k]
