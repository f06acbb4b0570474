"""Rows kept in memory, so that evaluations which read the same ones do not run the host for each again."""

from saetools.activations.base import ActivationBatch, NumberedBatches, RowSource, WrappedSource

KEPT_BYTES = 512 << 20


class KeptRows(WrappedSource):
    """A row source that keeps its first batches, `limit_bytes` of them at most, and asks the source for the rest.

    The rows are the source's, bit for bit and in its order; memory is bounded whatever its length. Batches are kept as
    they are first read, so that nothing is read before it is wanted.
    """

    def __init__(self, source: RowSource, limit_bytes: int = KEPT_BYTES) -> None:
        super().__init__(source)
        self.limit_bytes = limit_bytes
        self._kept: list[ActivationBatch] = []  # batches 0, 1, ...
        self._bytes = 0

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

    def _keep(self, number: int, rows: ActivationBatch) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in rows.tensors().values())
        if number == len(self._kept) and self._bytes + size <= self.limit_bytes:
            self._kept.append(rows)
            self._bytes += size
