"""The Gram matrix of a growing set of atoms: extended by blocks, never rebuilt."""

from math import isqrt

import torch
from torch import Tensor

GRAM_BYTES = 1 << 30
"""The largest Gram matrix that is built unasked; beyond it correlations are computed anew in each step."""


def most_atoms(n_bytes: int | None = None) -> int:
    """How many atoms have a float32 Gram matrix of at most so many bytes (None: GRAM_BYTES)."""
    return isqrt((GRAM_BYTES if n_bytes is None else n_bytes) // 4)


class Gram:
    """G = W W^T of the atoms added so far, in memory that doubles when it is full.

    `buffer` is [capacity, capacity]; its first n_atoms rows and columns are G. Adding m atoms to n costs one product
    of 2 m (n + m) D operations. Where at most `most` will come, the capacity is no more.
    """

    def __init__(self, W_FD: Tensor, most: int | None = None) -> None:
        self.n_atoms, self._most = 0, most
        self.buffer, self._atoms = _room(W_FD, 0)
        self.extend_(W_FD)

    @property
    def W_FD(self) -> Tensor:
        """The atoms, [n_atoms, D]."""
        return self._atoms[: self.n_atoms]

    def matrix(self) -> Tensor:
        """G, [n_atoms, n_atoms]: a view."""
        return self.buffer[: self.n_atoms, : self.n_atoms]

    def check(self, W_FD: Tensor) -> None:
        """ValueError where G is that of more atoms, or fewer: compiled loops would read beyond the smaller."""
        if self.n_atoms != len(W_FD):
            raise ValueError(f"the Gram matrix is that of {self.n_atoms} atoms, but there are {len(W_FD)}")

    @torch.no_grad()
    def extend_(self, W_MD: Tensor) -> None:
        """Add atoms after the others."""
        before, after = self.n_atoms, self.n_atoms + len(W_MD)
        if after > len(self.buffer):
            capacity = after if before == 0 else max(after, 2 * len(self.buffer))
            capacity = capacity if self._most is None else max(after, min(capacity, self._most))
            buffer, atoms = _room(W_MD, capacity)
            buffer[:before, :before], atoms[:before] = self.matrix(), self.W_FD
            self.buffer, self._atoms = buffer, atoms
        self._atoms[before:after] = W_MD
        block = W_MD @ self._atoms[:after].T
        self.buffer[before:after, :after] = block
        self.buffer[:before, before:after] = block[:, :before].T
        self.n_atoms = after


def _room(like_FD: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Memory for G and its atoms."""
    with torch.inference_mode(False):  # what is made in inference mode could not be extended outside it
        return like_FD.new_empty(capacity, capacity), like_FD.new_empty(capacity, like_FD.shape[1])
