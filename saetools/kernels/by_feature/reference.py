"""A code turned feature-major, in plain torch."""

import torch
from torch import Tensor


def by_feature(values_M: Tensor, indices_M: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    """offsets_F1 and slots: feature f owns slots[offsets[f] : offsets[f + 1]], slot numbers ascending.

    Slots whose value is 0 are left out. int32 both.
    """
    used = values_M != 0
    order = torch.sort(torch.where(used, indices_M.long(), n_features), stable=True).indices
    counts_F = torch.bincount(indices_M.long()[used], minlength=n_features)
    offsets_F1 = torch.nn.functional.pad(counts_F.cumsum(0), (1, 0))
    return offsets_F1.int(), order[: int(used.sum())].int()
