"""What the cases of every kernel are judged by: float64 truth, and the error of plain PyTorch as the yardstick."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Case = TypeVar("Case")

FLOOR, FEW = 4.0, 8
"""Errors below FLOOR units of the dtype's precision pass whatever PyTorch's own error is; of fewer than FEW numbers,
whose errors do not average, FEW / n times as many."""


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
    floor = FLOOR * max(1.0, FEW / got.numel()) * torch.finfo(got.dtype).eps
    found, allowed = error(got, exact), 2 * error(plain, exact) + floor
    assert found <= allowed, f"{name}: error {found:.3g} against float64, plain PyTorch allows {allowed:.3g}"


def on(device: str, cases: Iterable[Case], most: int | None = None) -> Iterator[Case]:
    """The cases with their tensors on a device, on which the loop's body also makes its own; made on the CPU, so that
    they are the same everywhere. `most`: leave out those with a tensor of more elements.
    """
    for case in cases:
        if most is not None and _largest(case) > most:
            continue
        if device == "cpu":
            yield case
        else:
            with torch.device(device):
                yield _changed(case, lambda t: t.to(device))  # which keeps an order of dimensions, but no gaps


def with_gaps(value: Case) -> Case:
    """The same with gaps between the elements of every tensor."""
    return _changed(value, lambda t: torch.stack([t, t], dim=-1)[..., 0])


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_changed(v, change) for v in value)
    if isinstance(value, dict):
        return {key: _changed(v, change) for key, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _changed(getattr(value, f.name), change) for f in fields(value)})
    return value


def _largest(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, tuple):
        return max(map(_largest, value), default=0)
    if is_dataclass(value) and not isinstance(value, type):
        return max((_largest(getattr(value, f.name)) for f in fields(value)), default=0)
    return 0
