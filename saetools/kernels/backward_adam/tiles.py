"""How the feature kernels are launched: columns at a time, warps, slots gathered at once."""

from dataclasses import dataclass

import torch
import triton

from saetools.kernels.triton_parts import n_processors, next_power

MOST_HELD = 5
"""Blocks of columns of an atom that stay in registers."""


@dataclass(frozen=True)
class Tile:
    """How a feature kernel is launched: columns at a time, warps, slots gathered at once, programs (per columns)."""

    columns: int
    warps: int
    slots: int
    n_programs: int
    registers: int | None = None  # at most so many per thread
    held: bool = False  # update: a new atom stays in registers until its norm is known


def tiles(n_features: int, d_model: int, device: torch.device) -> tuple[Tile, Tile]:
    """For measuring and for updating, until they are tried: within 1 % and 9 % of the best on an H200 of
    `gpu_suite.py --tune` (`analysis/bench/2026-11-27-gpu-h200.csv`)."""
    measuring, updating = other_tiles(n_features, d_model, device)
    return measuring[d_model > 3072], updating[0]


def other_tiles(n_features: int, d_model: int, device: torch.device) -> tuple[list[Tile], list[Tile]]:
    """What is worth a try, for measuring and for updating."""
    sizes = n_features, d_model, device
    measuring = [_measuring(columns, warps, slots, *sizes) for columns, warps, slots in ((256, 1, 2), (1024, 2, 4))]
    plain = [
        _updating(columns, warps, *sizes, registers)
        for columns, warps, registers in ((256, 1, 136), (256, 1, None), (512, 2, None))
    ]
    # four columns a thread, so that bf16 and float32 rows lie alike, and as few threads as hold an atom
    held = [
        _updating(columns, columns // 128, *sizes, 128, held=True)
        for columns in (256, 512, 1024)
        if triton.cdiv(d_model, columns) <= MOST_HELD
    ][:1]
    return measuring, plain + held


def _measuring(columns: int, warps: int, slots: int, n_features: int, d_model: int, device: torch.device) -> Tile:
    columns = min(columns, max(16, next_power(d_model)))
    n_programs = 24 * n_processors(device) // triton.cdiv(d_model, columns)  # as many as are resident
    return Tile(columns, warps, slots, min(n_features, max(1, n_programs)))


def _updating(
    columns: int,
    warps: int,
    n_features: int,
    d_model: int,
    device: torch.device,
    registers: int | None = None,
    held: bool = False,
) -> Tile:
    columns = min(columns, max(16, next_power(d_model)))
    registers = registers if d_model % 16 == 0 else None  # other rows lie at odd places, which takes more
    return Tile(columns, warps, 2, min(n_features, 64 * n_processors(device)), registers, held)
