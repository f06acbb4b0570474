"""Held-out rows kept in memory, so that evaluations which read the same rows do not run the host for each again."""

from collections.abc import Iterator

from torch import Tensor

from saetools.activations.base import ActivationBatch, NumberedBatches, RowSource
from saetools.records import Calibration, PointSpec

KEPT_BYTES = 512 << 20


class KeptRows:
    """A row source that keeps its first batches, `limit_bytes` of them at most, and asks the source for the rest.

    The rows are the source's, bit for bit and in its order; memory is bounded whatever its length. Batches are kept as
    they are first read, so that nothing is read before it is wanted.
    """

    def __init__(self, source: RowSource, limit_bytes: int = KEPT_BYTES) -> None:
        self.source, self.limit_bytes = source, limit_bytes
        self._kept: list[ActivationBatch] = []  # batches 0, 1, ...
        self._bytes = 0

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
        number = start
        while number < len(self._kept):
            yield number, self._kept[number]
            number += 1
        stream = self.source.batches(number)
        try:
            for number, rows in stream:
                self._keep(number, rows)
                yield number, rows
        finally:
            stream.close()

    def document_id(self, number: int) -> str:
        return self.source.document_id(number)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def _keep(self, number: int, rows: ActivationBatch) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(rows))
        if number == len(self._kept) and self._bytes + size <= self.limit_bytes:
            self._kept.append(rows)
            self._bytes += size


def _tensors(rows: ActivationBatch) -> Iterator[Tensor]:
    yield from (rows.x_ND, rows.where_N2, *rows.fields.values())
