"""Firing statistics of codes. A feature fires where the value that the decoder uses is not zero (codes may be signed).

Every density, L0 and dead count of the package goes through this file.
"""

from typing import Protocol

import torch
from torch import Tensor


class Code(Protocol):
    """What is needed of a sparse code: `dictionaries.code.SparseCode` in either layout."""

    @property
    def values(self) -> Tensor:
        """Coefficients of the slots."""
        ...

    @property
    def indices(self) -> Tensor:
        """Features of the slots."""
        ...

    @property
    def n_features(self) -> int:
        """F."""
        ...

    def __len__(self) -> int: ...

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rows_M, indices_M, values_M): the slots of all rows one after the other."""
        ...


@torch.no_grad()
def firing_counts_F(code: Code) -> Tensor:
    """int64 [F]: the number of rows in which each feature fires."""
    return torch.bincount(code.indices[code.values != 0], minlength=code.n_features)


@torch.no_grad()
def l0_N(code: Code) -> Tensor:
    """int64 [N]: the number of features that fire in each row."""
    return torch.bincount(code.flat()[0], minlength=len(code))


def density_F(counts_F: Tensor, n_rows: int) -> Tensor:
    """float64 [F]: the fraction of rows in which each feature fires; nan without rows."""
    return counts_F.double() / n_rows if n_rows else torch.full_like(counts_F, torch.nan, dtype=torch.float64)


def tokens_since_fired_F(before_F: Tensor, counts_F: Tensor, n_rows: int) -> Tensor:
    """int64 [F], in tokens: 0 where a feature fired in this batch of n_rows, else n_rows more than before.

    A latent that was selected with value 0 did not fire (Gao et al. 2024 count above 1e-3; sparsify and
    dictionary_learning count selection, so that with few positive pre-activations the dead look alive).
    """
    return torch.where(counts_F > 0, 0, before_F + n_rows)


def dead_F(tokens_since_fired: Tensor, dead_after_tokens: int) -> Tensor:
    """bool [F]: features that have not fired in the last `dead_after_tokens` tokens."""
    return tokens_since_fired >= dead_after_tokens


@torch.no_grad()
def least_positive(values: Tensor) -> Tensor:
    """The smallest value above 0 (a scalar); 0 where there is none."""
    positive = values[values > 0]
    return positive.min() if positive.numel() else values.new_zeros(())
