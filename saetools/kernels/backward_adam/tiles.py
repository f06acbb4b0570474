"""How the feature kernels are launched: columns at a time, warps, slots gathered at once."""

from dataclasses import dataclass

import torch
import triton

from saetools.kernels.triton_parts import n_processors, next_power


@dataclass(frozen=True)
class Tile:
    """How a feature kernel is launched: columns at a time, warps, slots gathered at once, programs (per columns)."""

    columns: int
    warps: int
    slots: int
    n_programs: int
    registers: int | None = None  # at most so many per thread


def tiles(n_features: int, d_model: int, device: torch.device) -> tuple[Tile, Tile]:
    """For measuring and for updating, unless they are measured: the best on an H200 of `gpu_suite.py --tune`."""
    n = n_processors(device)
    wide = d_model > 1024
    columns = min(512 if wide else 256, max(16, next_power(d_model)))
    n_measuring = max(1, 24 * n // triton.cdiv(d_model, columns))  # as many as are resident: each leaves a row of sums
    measuring = Tile(columns, 1, 4 if wide else 2, min(n_features, n_measuring))
    return measuring, Tile(min(256, max(16, next_power(d_model))), 1, 2, min(n_features, 64 * n))


def other_tiles(n_features: int, d_model: int, device: torch.device) -> tuple[list[Tile], list[Tile]]:
    """What else is worth a try, for measuring and for updating."""
    n = n_processors(device)
    measuring = [
        Tile(columns, 1, slots, min(n_features, max(1, 24 * n // triton.cdiv(d_model, columns))))
        for columns, slots in ((256, 2), (512, 4))
    ]
    updating = [
        Tile(columns, warps, slots, min(n_features, 64 * n), registers)
        for columns, warps, slots, registers in (
            (256, 1, 2, None),
            (256, 1, 2, 96),
            (256, 1, 2, 144),
            (512, 2, 2, None),
            (512, 2, 4, None),
        )
    ]
    return measuring, updating
