"""What the cases of every kernel are judged by: float64 truth, and the error of plain PyTorch as the yardstick."""

import torch
from torch import Tensor

FLOOR = 4.0
"""Errors below this many units of the dtype's precision pass whatever PyTorch's own error is."""


def error(got: Tensor, exact: Tensor) -> float:
    """||got - exact|| / ||exact||, NaN where either holds one; the norm itself where exact is 0."""
    difference = torch.linalg.vector_norm(got.double() - exact.double())
    return float(difference / torch.linalg.vector_norm(exact.double()).clamp_min(1e-30).where(exact.any(), 1.0))


def assert_as_good(name: str, got: Tensor, plain: Tensor, exact: Tensor) -> None:
    """AssertionError unless the error of `got` against float64 is at most twice that of `plain`, in the same dtype."""
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    assert got.dtype == plain.dtype, f"{name}: {got.dtype}, plain PyTorch gives {plain.dtype}"
    if got.numel() == 0:
        return
    found, allowed = error(got, exact), 2 * error(plain, exact) + FLOOR * torch.finfo(got.dtype).eps
    assert found <= allowed, f"{name}: error {found:.3g} against float64, plain PyTorch allows {allowed:.3g}"
