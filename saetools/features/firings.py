"""The codes of one host batch as flat arrays, ordered so that contexts and peaks are found without a loop."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from saetools.errors import DataError, MismatchError
from saetools.functional.statistics import Code
from saetools.text.base import TokenBatch

Flat = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(row_M, feature_M, value_M) of the slots of a code that are not zero, rows ascending."""


class NotFiniteError(DataError):
    """A code that is no number, or infinite: of weights that are damaged or diverged, or of such rows."""


def flat_code(code: Code) -> Flat:
    """The slots of a code as arrays; values of any dtype as float32. NotFiniteError for a value that is not finite."""
    row_M, feature_M, value_M = (column.cpu() for column in code.flat())
    value_M = value_M.float()
    if not bool(value_M.isfinite().all()):
        feature = int(feature_M[~value_M.isfinite()][0])
        raise NotFiniteError(
            f"the code of feature {feature} is not finite at some token: the weights of the dictionary are damaged or "
            "diverged in training, or the host overflowed. Take another checkpoint, or run the host in float32."
        )
    return row_M.numpy(), feature_M.numpy(), value_M.numpy()


@dataclass(frozen=True)
class Firings:
    """Every (token, feature) pair of a batch whose value is not zero, sorted by (feature, window, column).

    A window is a row of the TokenBatch, a column a place in it. Rows of a source without tokens are windows of one
    column each.
    """

    feature_M: np.ndarray  # int64
    window_M: np.ndarray  # int64
    column_M: np.ndarray  # int64
    value_M: np.ndarray  # float32
    n_rows: int
    width: int  # columns per window

    @staticmethod
    def of(flat: Flat, where_N2: np.ndarray, tokens: TokenBatch | None) -> "Firings":
        """The firings of rows that lie at where_N2 = (document, position); `flat` is a code's. O(M log M)."""
        rows, feature_M, value_M = flat
        n_rows = len(where_N2)
        if tokens is None:
            window_N, column_N, width = np.arange(n_rows), np.zeros(n_rows, np.int64), 1
        else:
            window_N, column_N = _places(where_N2, tokens)
            width = tokens.ids_BT.shape[1]
        window_M, column_M = window_N[rows], column_N[rows]
        order = np.lexsort((column_M, window_M, feature_M))
        return Firings(
            feature_M[order], window_M[order], column_M[order], value_M[order].astype(np.float32), n_rows, width
        )

    @cached_property
    def _keys_M(self) -> np.ndarray:
        """Strictly increasing int64 key of (feature, window, column)."""
        return self._key(self.feature_M, self.window_M, self.column_M)

    def _key(self, feature: np.ndarray, window: np.ndarray, column: np.ndarray) -> np.ndarray:
        n_windows = int(self.window_M.max(initial=0)) + 1
        return (feature * n_windows + window) * self.width + column

    def peaks(self) -> np.ndarray:
        """int64 [C]: for each (feature, window) pair, the index into M of its value of greatest magnitude.

        The first of equals. Ordered by (feature, window).
        """
        if not len(self.feature_M):
            return np.zeros(0, np.int64)
        pair_M = self._keys_M // self.width
        order = np.lexsort((self.column_M, -np.abs(self.value_M), pair_M))
        first = np.r_[True, np.diff(pair_M[order]) != 0]
        return order[first]

    def values_at(self, feature: np.ndarray, window: np.ndarray, column: np.ndarray) -> np.ndarray:
        """float32 value of each (feature, window, column), 0 where it does not fire; the arguments broadcast.

        Columns outside 0 <= column < width give 0.
        """
        wanted = self._key(feature, window, column)
        if not len(self.feature_M):
            return np.zeros(wanted.shape, np.float32)
        place = np.minimum(np.searchsorted(self._keys_M, wanted), len(self._keys_M) - 1)
        found = (self._keys_M[place] == wanted) & (column >= 0) & (column < self.width)
        return np.where(found, self.value_M[place], np.float32(0))


def _places(where_N2: np.ndarray, tokens: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
    """(window_N, column_N): where each row lies in the grid of the batch. MismatchError where one does not."""
    window, column = np.nonzero(tokens.keep_BT)
    document, position = tokens.document_B[window], tokens.position_BT[window, column]
    reach = int(max(position.max(initial=0), where_N2[:, 1].max(initial=0))) + 1
    key = document * reach + position
    order = np.argsort(key, kind="stable")
    wanted = where_N2[:, 0] * reach + where_N2[:, 1]
    place = np.searchsorted(key[order], wanted)
    found = place < len(key)
    found[found] = key[order[place[found]]] == wanted[found]
    if not found.all():
        document_id, position_id = where_N2[int(np.flatnonzero(~found)[0])]
        raise MismatchError(
            f"the row of document {document_id}, position {position_id} is not in host batch {tokens.number}: the rows "
            "were made from another plan of tokens. Use the plan (corpus, context, batch) that the rows came from."
        )
    return window[order[place]], column[order[place]]
