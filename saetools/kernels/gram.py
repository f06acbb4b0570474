"""The Gram matrix of a growing set of atoms: extended by blocks, never rebuilt."""

import torch
from torch import Tensor


class Gram:
    """G = W W^T of the atoms added so far, in memory that doubles when it is full.

    `buffer` is [capacity, capacity]; its first n_atoms rows and columns are G. Adding m atoms to n costs one product
    of 2 m (n + m) D operations.
    """

    def __init__(self, W_FD: Tensor) -> None:
        self.n_atoms = 0
        self._atoms = W_FD.new_empty(0, W_FD.shape[1])
        self.buffer = W_FD.new_empty(0, 0)
        self.extend_(W_FD)

    @property
    def W_FD(self) -> Tensor:
        """The atoms, [n_atoms, D]."""
        return self._atoms[: self.n_atoms]

    def matrix(self) -> Tensor:
        """G, [n_atoms, n_atoms]: a view."""
        return self.buffer[: self.n_atoms, : self.n_atoms]

    @torch.no_grad()
    def extend_(self, W_MD: Tensor) -> None:
        """Add atoms after the others."""
        before, after = self.n_atoms, self.n_atoms + len(W_MD)
        if after > len(self.buffer):
            capacity = after if before == 0 else max(after, 2 * len(self.buffer))
            buffer, atoms = W_MD.new_empty(capacity, capacity), W_MD.new_empty(capacity, W_MD.shape[1])
            buffer[:before, :before], atoms[:before] = self.matrix(), self.W_FD
            self.buffer, self._atoms = buffer, atoms
        self._atoms[before:after] = W_MD
        block = W_MD @ self._atoms[:after].T
        self.buffer[before:after, :after] = block
        self.buffer[:before, before:after] = block[:, :before].T
        self.n_atoms = after
