"""A code turned feature-major by a counting sort, in compiled loops."""

import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.compiled import serial


@serial
def counting_sort(values, indices, offsets, slots):
    """Stable: the slots of a feature keep their order. Returns the number of slots in use."""
    F, M = offsets.shape[0] - 1, values.shape[0]
    offsets[:] = 0
    for s in range(M):
        if values[s] != 0:
            offsets[indices[s] + 1] += 1
    for f in range(F):
        offsets[f + 1] += offsets[f]
    place = offsets[:F].copy()
    for s in range(M):
        if values[s] != 0:
            f = indices[s]
            slots[place[f]] = s
            place[f] += 1
    return offsets[F]


def by_feature(values_M: Tensor, indices_M: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    """As the reference."""
    offsets_F1 = torch.empty(n_features + 1, dtype=torch.int32, device="cpu")
    slots = torch.empty(len(values_M), dtype=torch.int32, device="cpu")
    with exclusive():
        used = counting_sort(values_M.numpy(), indices_M.numpy(), offsets_F1.numpy(), slots.numpy())
    return offsets_F1, slots[:used]
