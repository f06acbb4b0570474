"""Cutting a stream of row blocks into pieces of other sizes."""

from collections import deque
from collections.abc import Mapping

from torch import Tensor

from saetools.activations.base import ActivationBatch


class BatchCutter:
    """A queue of rows: blocks of any size go in, batches of any size come out, in order.

    Training pushes blocks and pops batches of `batch_rows`; several trainers with other batch sizes each have their
    own cutter on the same blocks. Rows are copied only where a batch spans several blocks.
    """

    def __init__(self) -> None:
        self._pieces: deque[ActivationBatch] = deque()
        self.n_rows = 0

    def push(self, rows: ActivationBatch) -> None:
        """Append rows at the end. The tensors are kept, not copied."""
        if len(rows):
            self._pieces.append(rows)
            self.n_rows += len(rows)

    def pop_pieces(self, n: int) -> list[ActivationBatch]:
        """The first n rows, as consecutive views of what was pushed; n is at most `n_rows`."""
        assert 0 <= n <= self.n_rows, f"{n} rows asked of {self.n_rows}"
        self.n_rows -= n
        taken: list[ActivationBatch] = []
        while n > 0:
            piece = self._pieces.popleft()
            if len(piece) > n:
                self._pieces.appendleft(piece.select(slice(n, None)))
                piece = piece.select(slice(0, n))
            taken.append(piece)
            n -= len(piece)
        return taken

    def pop(self, n: int) -> ActivationBatch:
        """The first n >= 1 rows as one batch; n is at most `n_rows`."""
        return ActivationBatch.concatenate(self.pop_pieces(n))

    def state(self) -> dict[str, Tensor]:
        """The rows not yet popped, by column name; empty without rows."""
        return ActivationBatch.concatenate(list(self._pieces)).tensors() if self._pieces else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, in place of what was queued."""
        self._pieces.clear()
        self.n_rows = 0
        if tensors:
            self.push(ActivationBatch.of(tensors))
