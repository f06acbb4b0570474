"""Exchanging rows in plain torch, on any device."""

import torch
from torch import Tensor


def swap_rows_(table: Tensor, slots_N: Tensor, incoming: Tensor, taken: Tensor) -> None:
    """taken = table[slots]; table[slots] = incoming."""
    places_N = slots_N.to(table.device)
    torch.index_select(table, 0, places_N, out=taken)
    table.index_copy_(0, places_N, incoming)
