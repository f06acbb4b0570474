"""Sparse codes: what an encoder gives and a decoder takes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.functional.selection import masked_code


@dataclass(frozen=True)
class SparseCode:
    """Sparse coefficients of N rows over F features, in one of two layouts.

    Fixed: `values` and `indices` are [N, K]; an unused slot is value 0, index 0.
    Ragged: `values` and `indices` are [M] and row n owns the slots offsets[n] : offsets[n + 1].
    Indices are int32. Stored zeros are legal and mean nothing: a feature fires where its value is not zero.

    >>> code = SparseCode.from_dense(torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]]))
    >>> len(code), code.n_features, code.offsets_N1.tolist()
    (2, 3, [0, 2, 3])
    >>> code.to_fixed().values.tolist()
    [[2.0, 1.0], [3.0, 0.0]]
    """

    values: Tensor
    indices: Tensor
    n_features: int
    offsets_N1: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.shape != self.indices.shape:
            raise ValueError(f"values {tuple(self.values.shape)} and indices {tuple(self.indices.shape)} differ")
        if self.indices.dtype != torch.int32:
            raise ValueError(f"indices are {self.indices.dtype}, must be torch.int32")
        if self.values.ndim != (2 if self.offsets_N1 is None else 1):
            raise ValueError("a fixed code has values [N, K]; a ragged one values [M] and offsets [N + 1]")

    def __len__(self) -> int:
        return self.values.shape[0] if self.offsets_N1 is None else self.offsets_N1.shape[0] - 1

    def rows(self) -> Tensor:
        """The row of each slot, int64, flat in slot order: [N * K] or [M]."""
        rows_N = torch.arange(len(self), device=self.values.device)
        if self.offsets_N1 is None:
            return rows_N.repeat_interleave(self.values.shape[1])
        return rows_N.repeat_interleave(self.offsets_N1.diff().long())

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rows_M, indices_M, values_M) of the slots that are not zero; rows and indices int64."""
        values, indices = self.values.reshape(-1), self.indices.reshape(-1).long()
        kept = values != 0
        return self.rows()[kept], indices[kept], values[kept]

    def to_dense(self) -> Tensor:
        """code_NF, differentiable in the values."""
        places = self.rows() * self.n_features + self.indices.reshape(-1)
        dense = self.values.new_zeros(len(self) * self.n_features).scatter_add(0, places, self.values.reshape(-1))
        return dense.view(len(self), self.n_features)

    def to_fixed(self) -> "SparseCode":
        """The fixed layout with K = the longest row; rows keep the order of their slots."""
        if self.offsets_N1 is None:
            return self
        lengths_N = self.offsets_N1.diff().long()
        width = int(lengths_N.max()) if len(lengths_N) else 0
        rows = self.rows()
        slots = torch.arange(len(rows), device=rows.device) - self.offsets_N1[:-1].long()[rows]
        values = self.values.new_zeros(len(self), width).index_put((rows, slots), self.values)
        indices = self.indices.new_zeros(len(self), width).index_put((rows, slots), self.indices)
        return SparseCode(values, indices, self.n_features)

    def to_ragged(self) -> "SparseCode":
        """The ragged layout without stored zeros; rows keep the order of their slots."""
        kept = self.values != 0
        rows_M = self.rows()[kept.flatten()]
        counts_N = torch.bincount(rows_M, minlength=len(self))
        offsets_N1 = torch.nn.functional.pad(counts_N.cumsum(0), (1, 0))
        return SparseCode(self.values[kept], self.indices[kept], self.n_features, offsets_N1)

    def select(self, rows: slice) -> "SparseCode":
        """The code of a contiguous range of rows."""
        if self.offsets_N1 is None:
            return SparseCode(self.values[rows], self.indices[rows], self.n_features)
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("rows of a ragged code are selected by contiguous slices only")
        offsets = self.offsets_N1[start : max(start, stop) + 1]
        slots = slice(int(offsets[0]), int(offsets[-1]))
        return SparseCode(self.values[slots], self.indices[slots], self.n_features, offsets - offsets[0])

    def scaled(self, factor: float | Tensor) -> "SparseCode":
        """The same code with its values multiplied."""
        return SparseCode(self.values * factor, self.indices, self.n_features, self.offsets_N1)

    @staticmethod
    def from_dense(code_NF: Tensor) -> "SparseCode":
        """The ragged code of all entries that are not zero, features ascending within a row."""
        values, indices, offsets = masked_code(code_NF, code_NF != 0)
        return SparseCode(values, indices, code_NF.shape[1], offsets)

    @staticmethod
    def concatenate(codes: "list[SparseCode]") -> "SparseCode":
        """All rows in order; the codes have one layout and, if fixed, one K."""
        values, indices = torch.cat([c.values for c in codes]), torch.cat([c.indices for c in codes])
        first_offsets = codes[0].offsets_N1
        if first_offsets is None:
            return SparseCode(values, indices, codes[0].n_features)
        lengths = torch.cat([c.offsets_N1.diff() for c in codes if c.offsets_N1 is not None])
        offsets_N1 = torch.cat([first_offsets[:1] * 0, lengths.cumsum(0)])
        return SparseCode(values, indices, codes[0].n_features, offsets_N1)
