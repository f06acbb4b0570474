"""One shuffle: a ring of rows whose slots are drawn at random and refilled in place from the source.

The stream of blocks is a pure function of (source, ring_rows, block_rows, seed). A token meets rows that entered up
to about ring_rows rows before it: a document of L rows leaves about L * batch / ring_rows of them in one batch.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saetools import rng
from saetools.activations.base import ActivationBatch, RowSource
from saetools.activations.batches import BatchCutter
from saetools.activations.live import TORCH_DTYPES
from saetools.config import Dtype
from saetools.errors import ConfigError, MismatchError
from saetools.kernels.swap_rows import swap_rows_

_logger = logging.getLogger(__name__)
BLOCK_ROWS = 1024
_WHERE_BYTES = 16
_RING, _LEFTOVER = "ring.", "leftover."


def ring_bytes(ring_rows: int, d_model: int, dtype: Dtype, n_fields: int = 0) -> int:
    """Bytes of a ring of `ring_rows` rows with `n_fields` further fields of the rows' width and dtype."""
    return ring_rows * (d_model * TORCH_DTYPES[dtype].itemsize * (1 + n_fields) + _WHERE_BYTES)


def rows_read(n_rows: int, ring_rows: int, block_rows: int = BLOCK_ROWS) -> int:
    """Rows of its source that a ring has read when it has given `n_rows`: whole blocks, and the ring ahead of them."""
    return -(-n_rows // block_rows) * block_rows + ring_rows


def check_ring(ring_rows: int, batch_rows: int, block_rows: int = BLOCK_ROWS) -> None:
    """Raise ConfigError where a ring cannot fill a batch of the trainer or a block of its own."""
    needed = max(batch_rows, block_rows)
    if ring_rows < needed:
        raise ConfigError(
            f"activations.ring_rows is {ring_rows}, less than the {needed} rows that it has to give at once "
            f"(training.batch_rows is {batch_rows}, a block of the ring has {block_rows}). "
            f"Set activations.ring_rows to {needed} or more; 32 batches or more mix well."
        )


class ShuffledRows:
    """Blocks of rows of a source in random order; multiset in = multiset out.

    Draw r takes block_rows distinct slots by `rng.generator(seed, "shuffle", r)`, gives their rows away and refills
    the slots with the next rows of the source. Where a finite source ends, the rest is drained in random order.
    The ring is allocated once, on `device`, when the first block is asked for; see `ring_bytes`. Blocks are there too.
    """

    def __init__(
        self,
        source: RowSource,
        ring_rows: int,
        seed: int,
        block_rows: int = BLOCK_ROWS,
        start: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        check_ring(ring_rows, block_rows, block_rows)
        self.source, self.ring_rows, self.seed, self.block_rows = source, ring_rows, seed, block_rows
        self.device = torch.device(device)
        self._next_batch = start  # number of the next host batch
        self._stream = source.batches(start)
        self._incoming = BatchCutter()  # the rest of the last host batch
        self._ring: dict[str, Tensor] = {}  # columns by name, [ring_rows, ...]
        self._size = 0  # slots 0 .. size - 1 are filled
        self._draw = 0

    def next_block(self) -> ActivationBatch | None:
        """The next block_rows rows (fewer only in the last block of a finite source), or None after the end."""
        if not self._ring:
            self._fill()
        n = min(self.block_rows, self._size)
        if n == 0:
            return None
        slots_N = torch.from_numpy(rng.generator(self.seed, "shuffle", self._draw).choice(self._size, n, replace=False))
        block = {name: column.new_empty((n, *column.shape[1:])) for name, column in self._ring.items()}
        done = 0
        for piece in self._pull(n):
            part, incoming = slice(done, done + len(piece)), piece.tensors()
            for name, column in self._ring.items():
                swap_rows_(column, slots_N[part], incoming[name], block[name][part])
            done += len(piece)
        if done < n:
            self._remove(slots_N[done:], block, done)
        self._draw += 1
        return ActivationBatch.of(block)

    def close(self) -> None:
        """Stop reading the source; threads that prefetch end."""
        self._stream.close()

    # --- checkpoints ---------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON) from which `restore` goes on with the same rows, bit for bit.

        The tensors are the ring's own memory: write them before the next block is asked for.
        """
        tensors = {_RING + name: column for name, column in self._ring.items()}
        tensors |= {_LEFTOVER + name: column for name, column in self._incoming.state().items()}
        return tensors, {
            **self._identity(),
            "next_host_batch": self._next_batch,
            "refill": self._draw,
            "size": self._size,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take over a `state` of a ring of the same source, size and seed; MismatchError names what differs."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise MismatchError(
                    f"The saved shuffle ring has {name} = {state.get(name)!r}, this run has {value!r}. A run resumes "
                    f"only on the same rows in the same order: restore the configuration and data that it began with."
                )
        self._stream.close()
        self._next_batch, self._draw, self._size = state["next_host_batch"], state["refill"], state["size"]
        self._stream = self.source.batches(self._next_batch)
        leftover, ring = _with_prefix(tensors, _LEFTOVER), _with_prefix(tensors, _RING)
        self._incoming.restore({name: column.to(self.device) for name, column in leftover.items()})
        self._ring = {name: column.to(self.device, copy=True) for name, column in ring.items()}

    def _identity(self) -> dict[str, Any]:
        return {
            "source": self.source.fingerprint(),
            "ring_rows": self.ring_rows,
            "block_rows": self.block_rows,
            "seed": self.seed,
        }

    # --- the ring ------------------------------------------------------------------------------------------

    def _pull(self, n: int) -> list[ActivationBatch]:
        """The next n rows of the source as pieces; fewer only where it ends."""
        while self._incoming.n_rows < n:
            numbered = next(self._stream, None)
            if numbered is None:
                break
            number, rows = numbered
            self._next_batch = number + 1
            self._incoming.push(rows.to(self.device))
        return self._incoming.pop_pieces(min(n, self._incoming.n_rows))

    def _fill(self) -> None:
        while self._size < self.ring_rows and (pieces := self._pull(min(self.block_rows, self.ring_rows - self._size))):
            for piece in pieces:
                columns = piece.tensors()
                if not self._ring:
                    self._ring = {name: t.new_empty((self.ring_rows, *t.shape[1:])) for name, t in columns.items()}
                    n_bytes = sum(column.nbytes for column in self._ring.values())  # a file's own gradients included
                    _logger.info("the shuffle ring takes %.1f MB for %d rows", n_bytes / 1e6, self.ring_rows)
                for name, column in self._ring.items():
                    column[self._size : self._size + len(piece)] = columns[name]
                self._size += len(piece)

    def _remove(self, slots_N: Tensor, block: Mapping[str, Tensor], at: int) -> None:
        """Copy the slots to block[at:] and close the gaps with the last rows, so that the filled slots stay first."""
        self._size -= len(slots_N)
        holes = slots_N.numpy()
        tail = np.setdiff1d(np.arange(self._size, self._size + len(holes)), holes)
        source_N, target_N = torch.from_numpy(tail), torch.from_numpy(np.sort(holes[holes < self._size]))
        for name, column in self._ring.items():
            block[name][at:] = column.index_select(0, slots_N.to(column.device))
            column.index_copy_(0, target_N.to(column.device), column.index_select(0, source_N.to(column.device)))


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
