"""What the golden cases share: sizes, rows, weights in general position, and the registry. Nothing of saetools."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

D, F, N, K = 6, 11, 12, 3
X_ND = torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
CASES: dict[str, Callable[[Path, torch.dtype], dict[str, Any]]] = {}


def case(name: str) -> Callable[[Any], Any]:
    """Register a function that writes the checkpoint to a directory and returns code, recon and how to read it."""

    def register(function: Callable[[Path, torch.dtype], dict[str, Any]]) -> Callable[..., Any]:
        CASES[name] = function
        return function

    return register


def in_general_position(module: torch.nn.Module, dtype: torch.dtype, pursuit: bool = False) -> None:
    """Random weights with a decoder far from unit norm and biases far from zero, as representable in dtype."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if "threshold" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=draw) * 1.5)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * (0.1, 0.5, 1)[parameter.ndim])
            if name.startswith(("W_dec", "decoder.weight")):
                rows = parameter if parameter.shape[0] == F else parameter.T
                rows *= torch.linspace(0.3, 2, F)[:, None]
                if pursuit:  # far longer atoms would make it diverge
                    rows *= torch.linspace(0.7, 1.2, F)[:, None] / rows.norm(dim=1, keepdim=True)
            parameter.copy_(parameter.to(dtype).float())


def made(**settings: Any) -> dict[str, torch.Tensor]:
    """Random tensors by name and shape, for layouts that are written here."""
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(*shape, generator=draw) * 0.7 for name, shape in settings.items()}
    for name in ("W_dec", "w_dec", "decoder.weight"):
        if name in tensors:
            rows = tensors[name] if tensors[name].shape[0] == F else tensors[name].T
            rows *= torch.linspace(0.3, 2, F)[:, None]
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    return tensors


def versions() -> dict[str, str]:
    names = ("sae-lens", "dictionary-learning", "eai-sparsify", "overcomplete", "torch", "safetensors")
    return {name: metadata.version(name) for name in names}
