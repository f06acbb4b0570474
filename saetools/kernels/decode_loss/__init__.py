"""Decode + loss + what the backward pass needs, in one pass over the code. No autograd: for the fused step."""

import torch
from torch import Tensor

from saetools.kernels.backend import Impl, operation, resolve
from saetools.kernels.decode_loss import reference, stock
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace


@torch.no_grad()
@operation
def decode_loss(
    x_ND: Tensor,
    code: Sparse,
    W_FD: Tensor,
    b_D: Tensor,
    *,
    group_M: Tensor | None = None,
    weights: tuple[float, ...] = (1.0,),
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """loss_NG, pull_NGD, dots_M of a code, for G = len(weights) nested groups of slots.

    group_M (uint8): the first group that each slot is in, 0 .. G - 1; without it all are in group 0. x is [N, D], the
    same for all groups, or [N, G, D] with one for each (not in Triton).

    residual_g = x_g - (sum over the slots of groups 0 .. g of value * W[index] + b)          [N, D]
    loss_NG    = ||residual_g||^2, unweighted, per row
    pull_NGD   = sum over h >= g of weights[h] * residual_h
    dots_M     = <pull[row, group of the slot], W[index]>, 0 at unused slots

    With L = c * sum_n sum_g weights[g] * loss_NG the gradients are dL/dvalue = -2 c dots, dL/dW[i] = -2 c * sum over
    its slots of value * pull, dL/db = -2 c * sum_n pull[n, 0]. Buffers belong to the workspace: valid until its next
    use. The indices must lie within W (not checked: the fused step makes them itself). ValueError where shapes do
    not fit.

    A process that holds a range of the features gives their rows, the code `within` that range, and for each group x
    less what the others decode of it: loss and pull are then those of the whole code, and dots those of its own slots.
    """
    if group_M is None:
        group_M = torch.zeros(len(code.values_M), dtype=torch.uint8, device=x_ND.device)
    code.check(x_ND, group_M)
    if W_FD.shape[1:] != x_ND.shape[-1:] or b_D.shape != x_ND.shape[-1:]:
        shapes = [tuple(t.shape) for t in (x_ND, W_FD, b_D)]
        raise ValueError("x {}, W [F, D] {} and b [D] {} do not fit each other".format(*shapes))
    chosen = resolve(impl, x_ND, code.values_M, W_FD, b_D, triton=x_ND.dim() == 2)
    x_ND, W_FD, b_D = x_ND.contiguous(), W_FD.contiguous(), b_D.contiguous()
    weights_G = torch.tensor(weights, dtype=x_ND.dtype, device=x_ND.device)
    x_NHD = x_ND if x_ND.dim() == 3 else x_ND[:, None]  # H: 1 or G
    if x_NHD.shape[1] not in (1, len(weights)):
        raise ValueError(
            f"x has {x_NHD.shape[1]} rows for each of the code's; it must be 1 or {len(weights)}, the groups"
        )
    if chosen == "numba":
        from saetools.kernels.decode_loss import cpu

        workspace = workspace or Workspace()
        return cpu.decode_loss(
            x_NHD, code.values_M, code.indices_M, code.offsets_N1, W_FD, b_D, group_M, weights_G, workspace
        )
    rows_M = code.rows()
    if chosen == "triton":
        from saetools.kernels.decode_loss import triton

        parts = (code.values_M.contiguous(), code.indices_M.contiguous(), code.offsets_N1.contiguous(), rows_M)
        return triton.decode_loss(x_ND, *parts, W_FD, b_D, group_M.contiguous(), weights_G, workspace or Workspace())
    if chosen == "torch":
        return stock.decode_loss(
            x_NHD, code.values_M, code.indices_M, code.offsets_N1, rows_M, W_FD, b_D, group_M, weights_G
        )
    return reference.decode_loss(x_NHD, code.values_M, code.indices_M, rows_M, W_FD, b_D, group_M, weights_G)


__all__ = ["decode_loss"]
