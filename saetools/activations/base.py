"""Rows of activations with where they come from, and what every source of rows offers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from saetools.records import Calibration, PointSpec


@dataclass(frozen=True)
class ActivationBatch:
    """Rows = kept tokens, in the order of the stream, raw (not scaled), in `activations.dtype`."""

    x_ND: Tensor
    where_N2: Tensor  # int64 (document number, position in the document)
    fields: Mapping[str, Tensor] = field(default_factory=dict)  # further tensors [N, ...] aligned with the rows

    def __len__(self) -> int:
        return self.x_ND.shape[0]

    def select(self, index: Tensor | slice) -> "ActivationBatch":
        """The rows at `index`, fields included."""
        return ActivationBatch(
            self.x_ND[index], self.where_N2[index], {name: value[index] for name, value in self.fields.items()}
        )

    @staticmethod
    def concatenate(batches: "list[ActivationBatch]") -> "ActivationBatch":
        """All rows in order; the batches have the same fields."""
        if len(batches) == 1:
            return batches[0]
        return ActivationBatch(
            torch.cat([b.x_ND for b in batches]),
            torch.cat([b.where_N2 for b in batches]),
            {name: torch.cat([b.fields[name] for b in batches]) for name in batches[0].fields},
        )


class RowSource(Protocol):
    """A repeatable stream of kept rows of one split in source order (not shuffled), restartable at its host batches.

    `batches(start)` yields (number, rows) for number = start, start + 1, ... Numbers go on over epochs (batch i of
    epoch e has number e * n_batches + i), so that a number alone says where to restart. The train split repeats for
    ever where its data allow it; the held-out split is given once. Outliers were dropped and counted, but rows are
    raw, not scaled.
    """

    spec: PointSpec
    calibration: Calibration

    def batches(self, start: int = 0) -> Iterator[tuple[int, ActivationBatch]]: ...

    def document_id(self, number: int) -> str:
        """The id of a document from its number in `where`."""
        ...

    def fingerprint(self) -> str:
        """Identifies the data: equal fingerprints give bit-identical streams."""
        ...
