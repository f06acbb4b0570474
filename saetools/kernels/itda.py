"""Scoring rows for inference-time dictionary construction: which of them does the dictionary not yet explain?"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saetools.kernels.backend import Impl
from saetools.kernels.gram import Gram
from saetools.kernels.matching_pursuit import matching_pursuit
from saetools.kernels.workspace import Workspace


@torch.no_grad()
def relative_error_N(
    x_ND: Tensor, gram: Gram, n_steps: int, *, workspace: Workspace | None = None, impl: Impl = "auto"
) -> Tensor:
    """||x - recon||^2 / ||x||^2 of each row, recon by n_steps of matching pursuit (absolute rule); 0 for zero rows.

    1 - error = cos^2 between x and its reconstruction where the residual is orthogonal to it.
    """
    square_N = x_ND.square().sum(1)
    if gram.n_atoms == 0:
        return (square_N > 0).to(x_ND.dtype)
    _, _, residual_ND = matching_pursuit(
        x_ND, gram.W_FD, n_steps, rule="absolute", gram=gram, workspace=workspace, impl=impl
    )
    return residual_ND.square().sum(1) / square_N.clamp_min(torch.finfo(x_ND.dtype).tiny)


@torch.no_grad()
def novel_rows(
    x_ND: Tensor,
    gram: Gram,
    n_steps: int,
    max_error: float,
    *,
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """The rows (int64, ascending) that should become atoms: explained worse than max_error, and not twins.

    A row is passed over if a row taken before it in this batch explains it alone to max_error, that is if their
    squared cosine is at least 1 - max_error. Source: Leask et al. 2025 (arXiv 2505.17769); the check within the batch
    is ours (theirs adds near-duplicates of one batch together).
    """
    worst = (relative_error_N(x_ND, gram, n_steps, workspace=workspace, impl=impl) > max_error).nonzero()[:, 0]
    unit = normalize(x_ND[worst], dim=1)
    twins = (unit @ unit.T).square() >= 1 - max_error
    open_rows = torch.ones(len(worst), dtype=torch.bool)
    taken = []
    for place in range(len(worst)):
        if open_rows[place]:
            taken.append(place)
            open_rows &= ~twins[place]
    return worst[torch.tensor(taken, dtype=torch.int64)]
