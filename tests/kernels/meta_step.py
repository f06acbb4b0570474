"""Every Triton launch at a given size, on tensors without memory: for compiling them offline."""

from dataclasses import replace

import torch

from saetools.kernels.backward_adam.problem import Weights
from saetools.kernels.backward_adam.tiles import other_tiles
from saetools.kernels.by_feature.triton import sort_slots
from saetools.kernels.global_topk import triton as global_topk
from saetools.kernels.matching_pursuit import triton as pursuit
from saetools.kernels.per_feature_topm import triton as per_feature
from saetools.kernels.topk_step import StepSettings
from saetools.kernels.topk_step.triton import DeviceStep
from saetools.kernels.workspace import Workspace

META = torch.device("meta")


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def run_everything(N: int, D: int, F: int, k: int) -> None:
    """Whole steps, and the operations that no step is made of."""
    run_steps(N, D, F, k)
    run_selections(N, D, F, k)
    run_pursuits(N, D, F, k)


def run_selections(N: int, D: int, F: int, k: int) -> None:
    """Over the batch, by a bf16 and a float32 product; and per feature."""
    for dtype in (torch.bfloat16, torch.float32):
        x, W = empty(N, D, dtype=dtype), empty(F, D, dtype=dtype)
        global_topk.select(x, W, empty(F), N * k, None, Workspace(), room=2 * N * k)
    whole = empty(F, dtype=torch.int64)
    slots = empty(N * k, dtype=torch.int32), empty(N * k)
    counted = empty(F, dtype=torch.float64), whole
    per_feature.select_into(x, W, empty(F), whole, whole, slots, None, counted, Workspace())


def run_pursuits(N: int, D: int, F: int, k: int) -> None:
    """Forwards with a Gram matrix, where one program holds all correlations, and without; and back."""
    x, W, options = empty(N, D), empty(F, D), ("nonnegative", 0.0, True, Workspace())
    for gram in (None, empty(F, F)):
        values, indices, residual = pursuit.matching_pursuit(x, W, gram, 2, *options)
    pursuit.backward(residual, values, indices, W, values, residual)


def run_steps(N: int, D: int, F: int, k: int) -> None:
    """Steps with both routes, selections, clips and kinds of moments, with and without AuxK."""
    base = StepSettings(k=k, variance=1.0, route="cublas")
    variants = (
        (base, torch.float32),
        (replace(base, route="fused", clip="lagged"), torch.float32),
        (replace(base, clip="lagged", exact_values=True), torch.bfloat16),
        (replace(base, aux_k=D // 2, aux_weight=1 / 32, capacity=F // 10), torch.float32),
        (replace(base, aux_k=256, aux_weight=1 / 32, capacity=F // 8), torch.float32),
        (replace(base, selection="global", aux_k=D // 2, aux_weight=1 / 32, capacity=F // 10), torch.float32),
        (replace(base, selection="global", compute="fp32"), torch.float32),
        (replace(base, selection="global", clip="lagged", exact_values=True), torch.bfloat16),
    )
    for settings, moments in variants:
        weights = Weights(empty(F, D), empty(F, D), empty(F), empty(D))
        first, second = (Weights(*(empty(F, D, dtype=moments) for _ in "ed"), empty(F), empty(D)) for _ in "mv")
        step = DeviceStep(weights, first, second, empty(F, dtype=torch.int64), settings, N)
        step.launch()
        step.dense = True
        step.residuals()
        slots, back = sort_slots(step.keys_M, F), step.backward
        measuring, updating = other_tiles(F, D, META)
        for tile in updating:
            back.use(back.measuring, tile)
            back.update(slots)
        for tile in measuring:
            back.use(tile, back.updating)
            back.measure(slots)
