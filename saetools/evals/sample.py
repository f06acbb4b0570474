"""A uniform sample of tokens that depends on neither batches nor order: for quantiles and scatter plots."""

import numpy as np
from torch import Tensor

from saetools.features.sampling import uniform

SIZE = 65_536
DRAW = 0
"""Key of the hash by which rows and windows are drawn to be judged: one for all runs."""


class TokenSample:
    """C numbers of each of at most `size` tokens: those of least hash of (seed, document, position)."""

    def __init__(self, n_columns: int, seed: int, size: int = SIZE) -> None:
        self.seed, self.size = seed, size
        self._kept = np.zeros((0, 1 + n_columns))  # hash, columns

    def add(self, where_N2: Tensor, columns_NC: Tensor) -> None:
        """Offer tokens at (document, position)."""
        where = where_N2.cpu().numpy()
        hashed = uniform(self.seed, where[:, 0], where[:, 1])
        kept = np.concatenate([self._kept, np.column_stack([hashed, columns_NC.cpu().double().numpy()])])
        self._kept = kept if len(kept) <= self.size else kept[np.argpartition(kept[:, 0], self.size)[: self.size]]

    def columns(self, n: int | None = None) -> np.ndarray:
        """float64 [tokens, C], in the order of their hashes; the first n of them are a sample too."""
        return self._kept[np.argsort(self._kept[:, 0], kind="stable")][:n, 1:]

    def quantiles(self, column: int, levels: tuple[float, ...]) -> list[float]:
        """Quantiles of one column over the sample; nans are left out; empty without values."""
        values = self._kept[:, 1 + column]
        values = values[np.isfinite(values)]
        return np.quantile(values, levels).tolist() if len(values) else []
