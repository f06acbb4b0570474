"""Functions with a jump, whose threshold is trained by a straight-through estimate of its gradient.

The true gradient of a step with respect to its threshold is 0 almost everywhere. Its expectation over pre-activations
is not: it is the density of the pre-activations at the threshold, which a rectangle kernel of width epsilon estimates
from those that lie within epsilon / 2 of it. Source: Rajamanoharan et al. 2024, "Jumping Ahead" (JumpReLU), arXiv
2407.14435, section 4; estimates on pre-activations, as in the paper.
"""

from typing import Any

import torch
from torch import Tensor


def jumprelu(pre_NF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
    """code_NF = pre where pre > threshold, else 0.

    d code / d pre = 1 where pre > threshold, else 0
    d code / d threshold ~ -(threshold / bandwidth) where |pre - threshold| < bandwidth / 2, else 0
    """
    return _JumpReLU.apply(pre_NF, threshold_F, bandwidth)


def step(pre_NF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
    """1 where pre > threshold, else 0, in the dtype of pre: summed over features it is the L0.

    d step / d pre = 0;   d step / d threshold ~ -(1 / bandwidth) where |pre - threshold| < bandwidth / 2, else 0
    """
    return _Step.apply(pre_NF, threshold_F, bandwidth)


def _in_window(pre_NF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
    return (pre_NF - threshold_F).abs() < bandwidth / 2


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_NF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_NF, threshold_F)
        ctx.bandwidth = bandwidth
        return pre_NF * (pre_NF > threshold_F)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        pre_NF, threshold_F = ctx.saved_tensors
        near_NF = gradients[0] * _in_window(pre_NF, threshold_F, ctx.bandwidth)
        return gradients[0] * (pre_NF > threshold_F), -near_NF.sum(0) * threshold_F / ctx.bandwidth, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_NF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_NF, threshold_F)
        ctx.bandwidth = bandwidth
        return (pre_NF > threshold_F).to(pre_NF.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        pre_NF, threshold_F = ctx.saved_tensors
        near_NF = gradients[0] * _in_window(pre_NF, threshold_F, ctx.bandwidth)
        return torch.zeros_like(pre_NF), -near_NF.sum(0) / ctx.bandwidth, None
