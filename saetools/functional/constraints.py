"""Decoder rows stay on the unit sphere: gradients are projected before the step, rows renormalised after it.

Order of a step: project -> clip -> Adam -> renormalise, so that what is saved has exactly unit rows.
Source: Bricken et al. 2023 (Towards Monosemanticity, "Optimization"); the order is that of
saprmarks/dictionary_learning after its pull request 36.
"""

import torch
from torch import Tensor


@torch.no_grad()
def project_tangent_(gradient_FD: Tensor, W_FD: Tensor) -> None:
    """g_i <- g_i - <g_i, d_i> d_i, in place: what is left moves unit rows along the sphere."""
    along_F1 = torch.linalg.vecdot(gradient_FD, W_FD)[:, None]
    gradient_FD.addcmul_(along_F1, W_FD, value=-1)


@torch.no_grad()
def unit_rows_(W_FD: Tensor) -> None:
    """d_i <- d_i / ||d_i||, in place; a zero row stays zero."""
    W_FD.div_(W_FD.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W_FD.dtype).tiny))
