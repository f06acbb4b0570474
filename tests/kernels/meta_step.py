"""Every Triton launch at a given size, on tensors without memory: for compiling them offline."""

from dataclasses import replace

import torch

from saetools.kernels.backward_adam.problem import Weights
from saetools.kernels.topk_step import StepSettings
from saetools.kernels.topk_step.triton import DeviceStep

META = torch.device("meta")


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def run_everything(N: int, D: int, F: int, k: int) -> None:
    """Steps with both routes, clips and kinds of moments, with and without AuxK."""
    base = StepSettings(k=k, variance=1.0, route="cublas")
    variants = (
        (base, torch.float32),
        (replace(base, route="fused", clip="lagged"), torch.float32),
        (replace(base, clip="lagged", exact_values=True), torch.bfloat16),
        (replace(base, aux_k=D // 2, aux_weight=1 / 32, capacity=F // 10), torch.float32),
    )
    for settings, moments in variants:
        weights = Weights(empty(F, D), empty(F, D), empty(F), empty(D))
        first, second = (Weights(*(empty(F, D, dtype=moments) for _ in "ed"), empty(F), empty(D)) for _ in "mv")
        DeviceStep(weights, first, second, empty(F, dtype=torch.int64), settings, N).launch()
