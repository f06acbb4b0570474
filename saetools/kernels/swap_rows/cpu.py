"""Exchanging rows in compiled loops: each row of the table is in the cache once, for reading and for writing."""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import parallel, prange
from saetools.kernels.swap_rows import reference

BLOCK = 64
"""Rows per task."""
FEW_BYTES = 1 << 16
"""Less than this is exchanged before other threads would have woken up."""


@parallel
def swap(table, slots, incoming, taken):
    N, n_bytes = incoming.shape
    for task in prange((N + BLOCK - 1) // BLOCK):
        for n in range(task * BLOCK, min(N, (task + 1) * BLOCK)):
            row, new, out = table[slots[n]], incoming[n], taken[n]
            for i in range(n_bytes):
                old = row[i]
                row[i] = new[i]
                out[i] = old


def swap_rows_(table: Tensor, slots_N: Tensor, incoming: Tensor, taken: Tensor) -> None:
    """As the reference, on the bytes of rows."""
    if incoming.nbytes < FEW_BYTES:
        reference.swap_rows_(table, slots_N, incoming, taken)
        return
    with exclusive():
        swap(_bytes(table), slots_N.numpy(), _bytes(incoming.contiguous()), _bytes(taken))


def _bytes(rows: Tensor) -> np.ndarray:
    """The memory of contiguous rows [N, bytes of a row]."""
    return rows.view(len(rows), -1).view(torch.uint8).numpy()
