"""Which features fire together, exactly over a uniform sample of tokens of bounded size."""

import numpy as np

from saetools.features.sampling import uniform

BLOCK_BYTES = 128 << 20
ROUNDING = 1e-11
"""Of the sum of squares: what the scatter of values that are all equal may come to by rounding."""
MIN_TOGETHER = 5  # tokens in common below which a PMI is noise and not listed


class Coactivation:
    """Keeps the codes of at most `capacity` tokens: the ones of greatest hashed priority, so a uniform sample.

    With no more than `capacity` tokens in the stream the counts are over all of them. Memory: about
    8 L0 + 16 bytes per token, twice.
    """

    def __init__(self, n_features: int, capacity: int, seed: int) -> None:
        self.n_features, self.capacity, self.seed = n_features, capacity, seed
        self._n_seen = 0
        self._priority: list[np.ndarray] = []
        self._length: list[np.ndarray] = []
        self._features: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def add(self, rows_M: np.ndarray, features_M: np.ndarray, values_M: np.ndarray, n_rows: int) -> None:
        """Take in the codes of one batch; rows_M ascends."""
        self._priority.append(uniform(self.seed, 2, self._n_seen + np.arange(n_rows)))
        self._length.append(np.bincount(rows_M, minlength=n_rows))
        self._features.append(features_M.astype(np.int32))
        self._values.append(values_M.astype(np.float32))
        self._n_seen += n_rows
        if sum(map(len, self._priority)) >= 2 * self.capacity:
            self._prune()

    def _prune(self) -> None:
        kinds = (self._priority, self._length, self._features, self._values)
        priority, length, features, values = (np.concatenate(kind) for kind in kinds)
        kept = np.zeros(len(priority), bool)
        kept[np.argsort(-priority, kind="stable")[: self.capacity]] = True
        self._priority, self._length = [priority[kept]], [length[kept]]
        inside = np.repeat(kept, length)
        self._features, self._values = [features[inside]], [values[inside]]

    def neighbours(self, n_neighbours: int = 20) -> tuple[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """(tokens counted, {"jaccard": (value_FJ, feature_FJ), "pmi": ..., "pearson": ...}), greatest first.

        Jaccard = n_ab / (n_a + n_b - n_ab); PMI = ln(n n_ab / (n_a n_b)) in nats, of pairs with n_ab >= 5; Pearson =
        correlation of the values over all tokens, silent ones included, of pairs with n_ab >= 5 whose values vary. nan
        where there is none; of equal values the lower index comes first.
        """
        if not self._priority:
            return 0, {}
        self._prune()
        length, features = self._length[0], self._features[0].astype(np.int64)
        values = self._values[0].astype(np.float64)
        n_tokens = len(length)
        count_F = np.bincount(features, minlength=self.n_features)
        sum_F = np.bincount(features, values, minlength=self.n_features)
        square_F = n_tokens * np.bincount(features, values**2, minlength=self.n_features)
        scatter_F = square_F - sum_F**2
        spread_F = np.sqrt(np.where(scatter_F > ROUNDING * square_F, scatter_F, np.nan))
        start_N = np.cumsum(length) - length
        row_M = np.repeat(np.arange(n_tokens), length)
        order = np.argsort(features, kind="stable")
        bounds_F1 = np.concatenate([[0], np.cumsum(count_F)])
        n_neighbours = min(n_neighbours, self.n_features - 1)
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"jaccard": [], "pmi": [], "pearson": []}
        for first in range(0, self.n_features, block := max(1, BLOCK_BYTES // (16 * self.n_features))):
            last = min(first + block, self.n_features)
            entries = order[bounds_F1[first] : bounds_F1[last]]
            rows = slice(first, last)
            together_RF, product_RF = self._together(features, values, row_M, start_N, length, entries, rows)
            n_a, n_b = count_F[first:last, None], count_F[None, :]
            with np.errstate(divide="ignore", invalid="ignore"):
                jaccard = together_RF / (n_a + n_b - together_RF)
                pmi = np.log(n_tokens * together_RF / (n_a * n_b))
                pearson = (n_tokens * product_RF - np.outer(sum_F[rows], sum_F)) / np.outer(spread_F[rows], spread_F)
            parts["jaccard"].append(_best(np.where(together_RF > 0, jaccard, -np.inf), n_neighbours))
            often = together_RF >= MIN_TOGETHER
            parts["pmi"].append(_best(np.where(often, pmi, -np.inf), n_neighbours))
            parts["pearson"].append(_best(np.where(often & np.isfinite(pearson), pearson, -np.inf), n_neighbours))
        joined = {
            name: (np.concatenate([value for value, _ in part]), np.concatenate([index for _, index in part]))
            for name, part in parts.items()
        }
        return n_tokens, joined

    def _together(
        self,
        features: np.ndarray,
        values: np.ndarray,
        row_M: np.ndarray,
        start_N: np.ndarray,
        length: np.ndarray,
        entries: np.ndarray,
        rows: slice,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(in how many tokens both fire, sum of the products of their values) [R, F] for a slice of features.

        0 on the diagonal. In bounded pieces of pairs.
        """
        n_rows = rows.stop - rows.start
        together, product = np.zeros(n_rows * self.n_features, np.int64), np.zeros(n_rows * self.n_features)
        widest = max(int(length.max(initial=1)), 1)
        for piece in np.array_split(entries, max(1, len(entries) * widest * 16 // BLOCK_BYTES + 1)):
            n_partners = length[row_M[piece]]
            owner = np.repeat(features[piece] - rows.start, n_partners)
            rank = np.arange(int(n_partners.sum())) - np.repeat(np.cumsum(n_partners) - n_partners, n_partners)
            partner = np.repeat(start_N[row_M[piece]], n_partners) + rank
            pair = owner * self.n_features + features[partner]
            np.add.at(together, pair, 1)
            np.add.at(product, pair, np.repeat(values[piece], n_partners) * values[partner])
        diagonal = np.arange(n_rows) * self.n_features + np.arange(rows.start, rows.stop)
        together[diagonal], product[diagonal] = 0, 0
        return together.reshape(n_rows, -1), product.reshape(n_rows, -1)


def _best(score_RF: np.ndarray, n_best: int) -> tuple[np.ndarray, np.ndarray]:
    """(value_RJ, index_RJ) of each row's greatest scores, nan where there is none.

    Exact with ties: whatever is above the n-th greatest score, then the lowest indices among its equals.
    """
    if n_best == 0:
        return np.zeros((len(score_RF), 0)), np.zeros((len(score_RF), 0), np.int64)
    threshold = -np.partition(-score_RF, n_best - 1, axis=1)[:, n_best - 1 : n_best]
    above = score_RF > threshold
    tied = score_RF == threshold
    room = n_best - above.sum(axis=1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1) <= room))
    index = np.nonzero(chosen)[1].reshape(len(score_RF), n_best)
    value = np.take_along_axis(score_RF, index, 1)
    order = np.argsort(-value, axis=1, kind="stable")
    value, index = np.take_along_axis(value, order, 1), np.take_along_axis(index, order, 1)
    return np.where(np.isfinite(value), value, np.nan), index
