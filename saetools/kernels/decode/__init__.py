"""Decode a sparse code: a weighted sum of the atoms in use, with its gradients, never a dense code."""

from typing import Any

import torch
from torch import Tensor

from saetools.kernels.backend import Impl, operation, resolve
from saetools.kernels.by_feature import by_feature
from saetools.kernels.decode import reference, stock

DENSE_BELOW = 6
"""With fewer than this many features per kept one (F / K) a dense product beats the gather (see `bench.py ops`)."""


@operation
def decode(
    values: Tensor,
    indices: Tensor,
    W_FD: Tensor,
    offsets_N1: Tensor | None = None,
    *,
    first_feature: int = 0,
    impl: Impl = "auto",
) -> Tensor:
    """recon_ND: sum over the slots of each row of value * W[index - first_feature], without a bias.

    values and indices (int32) are [N, K], or [M] with offsets_N1 (row n owns slots offsets[n] : offsets[n + 1]).
    Slots of value 0 add nothing, whatever their index. Differentiable in values and W. IndexError where an index
    of the other slots lies outside W, ValueError where shapes do not fit, or offsets do not cover the slots in order.
    """
    _check_layout(values, indices, offsets_N1)
    chosen = resolve(impl, values, W_FD)
    n_rows = len(values) if offsets_N1 is None else len(offsets_N1) - 1
    if offsets_N1 is None:
        width = values.shape[1]
        offsets_N1 = torch.arange(0, n_rows * width + 1, width or 1, device=values.device)[: n_rows + 1]
        if width == 0:
            offsets_N1 = torch.zeros(n_rows + 1, dtype=torch.long, device=values.device)
    flat = values.reshape(-1) if chosen == "triton" else values.reshape(-1).to(W_FD.dtype)
    local_M = indices.reshape(-1) - first_feature
    if len(local_M):
        low, high = (int(v) for v in local_M.aminmax())
        if low < 0 or high >= len(W_FD):
            local_M = _within(local_M, flat.detach() != 0, len(W_FD))
    local_M = local_M.int()
    crowded = n_rows * len(W_FD) < DENSE_BELOW * len(flat)
    if chosen == "reference" or (impl == "auto" and crowded):
        rows_M = _rows(offsets_N1)
        return reference.decode(flat, local_M, rows_M, n_rows, W_FD)
    return _Decode.apply(flat, local_M, offsets_N1.long(), W_FD, chosen)


def _within(local_M: Tensor, used_M: Tensor, n_rows: int) -> Tensor:
    """Indices of which those that lie outside become 0; IndexError where one of these is used, or there is no row 0."""
    outside_M = (local_M < 0) | (local_M >= n_rows)
    if n_rows == 0 or (outside_M & used_M).any():
        low, high = (int(v) for v in local_M[used_M if n_rows else outside_M].aminmax())
        raise IndexError(f"feature indices span {low}..{high} of the {n_rows} rows of W")
    return local_M.masked_fill(outside_M, 0)


def _check_layout(values: Tensor, indices: Tensor, offsets_N1: Tensor | None) -> None:
    """ValueError where compiled loops would read beyond the slots."""
    if values.shape != indices.shape or values.ndim != (2 if offsets_N1 is None else 1):
        raise ValueError(
            f"values {tuple(values.shape)} and indices {tuple(indices.shape)} must both be [N, K], or [M] with offsets"
        )
    if offsets_N1 is not None:
        lengths_N = offsets_N1.diff()
        if (
            len(offsets_N1) == 0
            or int(offsets_N1[0]) != 0
            or int(offsets_N1[-1]) != len(values)
            or (lengths_N < 0).any()
        ):
            raise ValueError(f"offsets must rise from 0 to {len(values)}, the number of slots")


def _rows(offsets_N1: Tensor) -> Tensor:
    """The row of each slot, int64."""
    return torch.arange(len(offsets_N1) - 1, device=offsets_N1.device).repeat_interleave(offsets_N1.diff().long())


def gather_sum(values_M: Tensor, indices_M: Tensor, offsets_N1: Tensor, W_FD: Tensor, chosen: str) -> Tensor:
    """out_ND: sum over the slots of each row of value * W[index]; arguments contiguous, indices within W."""
    if chosen == "numba":
        from saetools.kernels.decode import cpu

        return cpu.gather_sum(values_M, indices_M, offsets_N1, W_FD)
    if chosen == "triton":
        from saetools.kernels.decode import triton

        return triton.gather_sum(values_M, indices_M, offsets_N1, W_FD)
    return stock.gather_sum(values_M, indices_M, offsets_N1, W_FD)


@operation
def scatter_rows(
    values_M: Tensor, indices_M: Tensor, rows_M: Tensor, x_ND: Tensor, n_features: int, chosen: str
) -> Tensor:
    """out_FD[f] = sum over the slots of feature f of value * x[row]: the gather-sum of the feature-major code."""
    offsets_F1, slots = by_feature(values_M, indices_M, n_features, impl="numba" if chosen == "numba" else "torch")
    places = slots.long()
    return gather_sum(values_M[places], rows_M[places].int(), offsets_F1.long(), x_ND, chosen)


class _Decode(torch.autograd.Function):
    """dvalue = <g[row], W[index]>; dW[index] += value g[row]."""

    @staticmethod
    def forward(ctx: Any, values_M: Tensor, indices_M: Tensor, offsets_N1: Tensor, W_FD: Tensor, chosen: str) -> Tensor:
        values_M, W_FD = values_M.contiguous(), W_FD.contiguous()
        ctx.save_for_backward(values_M, indices_M, offsets_N1, W_FD)
        ctx.chosen = chosen
        return gather_sum(values_M, indices_M, offsets_N1, W_FD, chosen)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_ND: Tensor) -> tuple[Tensor | None, ...]:
        values_M, indices_M, offsets_N1, W_FD = ctx.saved_tensors
        g_ND = g_ND.contiguous()
        rows_M = _rows(offsets_N1)
        dvalues = dW = None
        if ctx.needs_input_grad[0]:
            if ctx.chosen == "numba":
                from saetools.kernels.decode import cpu

                dvalues = cpu.gather_dot(indices_M, offsets_N1, g_ND, W_FD)
            elif ctx.chosen == "triton":
                from saetools.kernels.decode import triton

                dvalues = triton.gather_dot(indices_M, rows_M, g_ND, W_FD)
            else:
                dvalues = stock.gather_dot(indices_M, rows_M, g_ND, W_FD)
        if ctx.needs_input_grad[3]:
            dW = scatter_rows(values_M, indices_M, rows_M, g_ND, len(W_FD), ctx.chosen)
        return dvalues, None, None, dW, None


__all__ = ["decode", "gather_sum", "scatter_rows"]
