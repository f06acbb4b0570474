"""Rows of activations with where they come from, and what every source of rows offers."""

import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from saetools.records import Calibration, FrozenModel, PointSpec

_FIELD = "fields."
GRAD = "grad"
"""The field of dL/dx: of the sum of the host's next-token losses (nats), raw, like the rows."""


BLOCK_ROWS = 1000
"""Rows of no document: so many consecutive ones count as one, so that there are several to resample."""


def places(first: int, end: int) -> Tensor:
    """`where` of the rows first .. end - 1 that belong to no document: (block of BLOCK_ROWS rows, row)."""
    rows = torch.arange(first, end, device="cpu")
    return torch.stack([rows // BLOCK_ROWS, rows], 1)


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

    def to(self, device: torch.device | str) -> "ActivationBatch":
        """The rows on a device; themselves where they are there."""
        return ActivationBatch.of({name: column.to(device) for name, column in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All columns by name: `x`, `where` and `fields.<name>`; the inverse of `of`."""
        return {
            "x": self.x_ND,
            "where": self.where_N2,
            **{_FIELD + name: value for name, value in self.fields.items()},
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "ActivationBatch":
        """The rows whose columns have the names that `tensors` gives."""
        fields = {name.removeprefix(_FIELD): t for name, t in tensors.items() if name.startswith(_FIELD)}
        return ActivationBatch(tensors["x"], tensors["where"], fields)

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


class Counts(FrozenModel):
    """What became of the tokens or rows that a source read."""

    rows: int = 0  # kept
    bos: int = 0
    padding: int = 0
    outliers: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            rows=self.rows + other.rows,
            bos=self.bos + other.bos,
            padding=self.padding + other.padding,
            outliers=self.outliers + other.outliers,
        )


NumberedBatches = Generator[tuple[int, ActivationBatch], None, None]
"""(number, rows) of consecutive host batches. Closing the generator frees what made them, threads included."""


class RowSource(Protocol):
    """A repeatable stream of kept rows of one split in source order (not shuffled), restartable at its host batches.

    `batches(start)` yields (number, rows) for number = start, start + 1, ... Numbers go on over epochs (batch i of
    epoch e has number e * n_batches + i), so that a number alone says where to restart. The train split repeats for
    ever where its data allow it; the held-out split is given once. Outliers were dropped and counted, but rows are
    raw, not scaled.
    """

    @property
    def spec(self) -> PointSpec: ...

    @property
    def calibration(self) -> Calibration:
        """The constants that its rows are scaled by. ConfigError where they were not measured yet."""
        ...

    @property
    def n_batches(self) -> int | None:
        """Host batches in an epoch; None while or where it is not known."""
        ...

    def batches(self, start: int = 0) -> NumberedBatches:
        """(number, batch) from host batch `start` on: for ever on the train split, to the end of the held-out one."""
        ...

    def document_id(self, number: int) -> str:
        """The id of a document from its number in `where`."""
        ...

    @property
    def outlier_norm(self) -> float | None:
        """Norm above which rows are dropped as outliers; None where none are."""
        ...

    def fingerprint(self, calibrated: bool = True) -> str:
        """Identifies the data: equal fingerprints give bit-identical streams.

        Not `calibrated`, it leaves out the norm above which rows are outliers, which runs measure on training rows of
        their own: equal ones are of the same text, host, point and windows, and outliers are dropped by all or none.
        """
        ...


class WrappedSource:
    """The rows of another source, given in another way: a subclass says how, everything else is the source's."""

    def __init__(self, source: RowSource) -> None:
        self.source = source

    @property
    def spec(self) -> PointSpec:
        return self.source.spec

    @property
    def calibration(self) -> Calibration:
        return self.source.calibration

    @property
    def n_batches(self) -> int | None:
        return self.source.n_batches

    def batches(self, start: int = 0) -> NumberedBatches:
        return self.source.batches(start)

    def document_id(self, number: int) -> str:
        return self.source.document_id(number)

    @property
    def outlier_norm(self) -> float | None:
        return self.source.outlier_norm

    def fingerprint(self, calibrated: bool = True) -> str:
        return self.source.fingerprint(calibrated)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (32 hex digits) of a value's canonical JSON: what fingerprints are made of."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]
