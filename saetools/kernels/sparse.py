"""The flat form in which kernels take a sparse code."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sparse:
    """N rows of slots: row n owns slots offsets[n] : offsets[n + 1]. A slot of value 0 is unused."""

    values_M: Tensor
    indices_M: Tensor  # int32
    offsets_N1: Tensor  # int64

    @staticmethod
    def fixed(values_NK: Tensor, indices_NK: Tensor) -> "Sparse":
        """The flat form of a code with K slots in each row; shares memory where it is contiguous."""
        N, K = values_NK.shape
        offsets_N1 = torch.arange(N + 1, device=values_NK.device) * K
        return Sparse(values_NK.reshape(-1), indices_NK.reshape(-1), offsets_N1)

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    def check(self, x_ND: Tensor, *of_slots: Tensor) -> None:
        """ValueError unless it has as many rows as x, and these tensors have one number for each slot: compiled loops
        would read beyond the shorter. That offsets end at the last slot, and indices within W, is not looked at.
        """
        rows, slots = (len(x_ND), len(self)), {tuple(t.shape) for t in (self.values_M, self.indices_M, *of_slots)}
        if rows[0] != rows[1] or slots != {(len(self.values_M),)}:
            raise ValueError(f"a code of {rows[1]} rows with slots of shapes {sorted(slots)} for {rows[0]} rows")

    def within(self, first_feature: int, n_features: int) -> "Sparse":
        """The slots of a contiguous range of features, counted from its first; those of others are unused.

        What a process that holds only these rows of the matrices works on.
        """
        local_M = self.indices_M - first_feature
        inside_M = (local_M >= 0) & (local_M < n_features)
        return Sparse(torch.where(inside_M, self.values_M, 0), torch.where(inside_M, local_M, 0), self.offsets_N1)

    def rows(self) -> Tensor:
        """The row of each slot, int64."""
        return torch.arange(len(self), device=self.values_M.device).repeat_interleave(self.offsets_N1.diff())
