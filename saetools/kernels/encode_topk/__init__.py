"""Encode and select in one operation: the k largest pre-activations of each row, never keeping all of them."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from saetools.kernels.backend import Impl, bf16_units, check_shapes, operation, resolve
from saetools.kernels.encode_topk import reference, stock
from saetools.kernels.encode_topk.by_score import encode_by_score
from saetools.kernels.workspace import Workspace

Precision = Literal["auto", "fp32", "bf16-screen"]
TRITON_MAX_K, TRITON_MAX_FEATURES = 1024, 1 << 20
"""What a Triton program can hold of a row: 32 k candidates, and one maximum for every 32 features."""


@operation
def encode_topk(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    *,
    relu: bool = True,
    precision: Precision = "fp32",
    margin: float = 1.5,
    first_feature: int = 0,
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """values_NK and indices_NK (int32) of the k largest of pre = x W^T + b in each row.

    x_ND rows (the decoder bias already taken off), W_FD encoder rows, b_F bias. Ties go to the lowest index. The
    order of slots within a row is not specified, but a function of that row alone. With `relu`, values that are not
    positive leave their slot unused: value 0, index 0. `first_feature` is added to indices: W may be a contiguous
    range of the features. Differentiable in x, W and b through the selected values.

    precision "fp32": the product is in the dtype of x. "bf16-screen": a bf16 product chooses candidates, whose values
    are computed in the dtype of x, and the k best of them are kept. Compiled (`screen.py`), the bf16 scores are proven
    upper bounds and as many candidates are taken as the proof asks for: the result is the exact top k, several times
    faster where the CPU has bf16 matrix units. Elsewhere ceil(margin * k) candidates are taken: values are exact,
    and of random rows and features recall is at least 0.9999 at margin 1.5; it is less where bf16 tells few scores
    apart (beside large biases, say). "auto": see `preferred_precision`.

    ValueError where k is not in 1..F, and where shapes do not fit. Source: two-stage selection is our own; see
    `select.py`.
    """
    check_shapes(x_ND, W_FD, b_F)
    F = len(W_FD)
    if not 1 <= k <= F:
        raise ValueError(f"k is {k}; it must lie in 1..{F}, the number of features")
    if precision not in ("auto", "fp32", "bf16-screen"):
        raise ValueError(f"precision is {precision!r}; known: auto, fp32, bf16-screen")
    held = (k if precision == "fp32" else margin * k) <= TRITON_MAX_K and F <= TRITON_MAX_FEATURES
    chosen = resolve(impl, x_ND, W_FD, b_F, triton=held)
    if precision == "auto":
        precision = preferred_precision(chosen)
    screen = math.ceil(margin * k) if precision == "bf16-screen" else 0
    if screen and margin < 1:
        raise ValueError(f"margin is {margin}; it must be at least 1")
    if chosen == "reference":
        values_NK, indices_NK = reference.encode_topk(x_ND, W_FD, b_F, k, relu)
        return values_NK, _shifted(values_NK, indices_NK, relu, first_feature)
    values_NK, indices_NK = _EncodeTopK.apply(
        x_ND, W_FD, b_F, k, relu, screen, first_feature, workspace or Workspace(), chosen
    )
    return values_NK, indices_NK


def preferred_precision(chosen: str) -> Literal["fp32", "bf16-screen"]:
    """The faster of the two: bf16-screen on a GPU, and in compiled loops (exact there) on a CPU with bf16 units."""
    return "bf16-screen" if chosen == "triton" or (chosen == "numba" and bf16_units()) else "fp32"


def _shifted(values_NK: Tensor, indices_NK: Tensor, relu: bool, first: int) -> Tensor:
    """Indices among all features; unused slots stay 0."""
    if first == 0:
        return indices_NK
    shifted = indices_NK + first
    return torch.where(values_NK == 0, 0, shifted).int() if relu else shifted


class _EncodeTopK(torch.autograd.Function):
    """dx = sum_j dv_j W[i_j]; dW[i] += dv x; db[i] += dv, over the slots in use."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        W_FD: Tensor,
        b_F: Tensor,
        k: int,
        relu: bool,
        screen: int,
        first: int,
        workspace: Workspace,
        chosen: str,
    ) -> tuple[Tensor, Tensor]:
        x_ND, W_FD, b_F = x_ND.contiguous(), W_FD.contiguous(), b_F.contiguous()
        if chosen == "numba":
            from saetools.kernels.encode_topk import cpu

            values, indices = cpu.encode_topk(x_ND, W_FD, b_F, k, relu, screen > 0, first, workspace)
        elif chosen == "triton":
            from saetools.kernels.encode_topk import triton

            values, indices = triton.encode_topk(x_ND, W_FD, b_F, k, relu, screen, first, workspace)
        else:
            values, indices = stock.encode_topk(x_ND, W_FD, b_F, k, relu, screen, workspace)
            indices = _shifted(values, indices, relu, first)
        ctx.save_for_backward(x_ND, W_FD, values, indices)
        ctx.relu, ctx.first, ctx.impl = relu, first, chosen
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dvalues_NK: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        from saetools.kernels.decode import gather_sum, scatter_rows

        x_ND, W_FD, values_NK, indices_NK = ctx.saved_tensors
        n_rows, k = values_NK.shape
        dvalues_M, local_M = dvalues_NK.reshape(-1).contiguous(), (indices_NK - ctx.first).reshape(-1)
        if ctx.relu:
            used_M = values_NK.reshape(-1) > 0  # by where: infinity times 0 is no 0
            dvalues_M, local_M = torch.where(used_M, dvalues_M, 0), local_M * used_M
        dx = dW = db = None
        if ctx.needs_input_grad[0]:
            offsets_N1 = torch.arange(0, n_rows * k + 1, k, device=x_ND.device)
            dx = gather_sum(dvalues_M, local_M, offsets_N1, W_FD, ctx.impl)
        if ctx.needs_input_grad[1]:
            rows_M = torch.arange(n_rows, device=x_ND.device).repeat_interleave(k)
            dW = scatter_rows(dvalues_M, local_M, rows_M, x_ND, len(W_FD), ctx.impl)
        if ctx.needs_input_grad[2]:
            db = dvalues_M.new_zeros(len(W_FD)).index_add(0, local_M.long(), dvalues_M)
        return dx, dW, db, None, None, None, None, None, None


__all__ = ["Precision", "encode_by_score", "encode_topk", "preferred_precision"]
