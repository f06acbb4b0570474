"""Which features fire together, counted exactly over a uniform sample of tokens of bounded size."""

import numpy as np

from saetools.features.sampling import uniform

BLOCK_BYTES = 128 << 20
MIN_TOGETHER = 5  # tokens in common below which a PMI is noise and not listed


class Coactivation:
    """Keeps the supports of at most `capacity` tokens: the ones of greatest hashed priority, so a uniform sample.

    With no more than `capacity` tokens in the stream the counts are over all of them. Memory: about
    4 L0 + 16 bytes per token, twice.
    """

    def __init__(self, n_features: int, capacity: int, seed: int) -> None:
        self.n_features, self.capacity, self.seed = n_features, capacity, seed
        self._n_seen = 0
        self._priority: list[np.ndarray] = []
        self._length: list[np.ndarray] = []
        self._features: list[np.ndarray] = []

    def add(self, rows_M: np.ndarray, features_M: np.ndarray, n_rows: int) -> None:
        """Take in the supports of one batch; rows_M ascends."""
        self._priority.append(uniform(self.seed, 2, self._n_seen + np.arange(n_rows)))
        self._length.append(np.bincount(rows_M, minlength=n_rows))
        self._features.append(features_M.astype(np.int32))
        self._n_seen += n_rows
        if sum(map(len, self._priority)) >= 2 * self.capacity:
            self._prune()

    def _prune(self) -> None:
        priority, length, features = (np.concatenate(x) for x in (self._priority, self._length, self._features))
        kept = np.zeros(len(priority), bool)
        kept[np.argsort(-priority, kind="stable")[: self.capacity]] = True
        self._priority, self._length = [priority[kept]], [length[kept]]
        self._features = [features[np.repeat(kept, length)]]

    def neighbours(self, n_neighbours: int = 20) -> tuple[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """(tokens counted, {"jaccard": (value_FJ, feature_FJ), "pmi": ...}), greatest first; nan where there is none.

        Jaccard = n_ab / (n_a + n_b - n_ab); PMI = ln(n n_ab / (n_a n_b)) in nats, of pairs with n_ab >= 5. Of equal
        values the lower index comes first.
        """
        if not self._priority:
            return 0, {}
        self._prune()
        length, features = self._length[0], self._features[0].astype(np.int64)
        n_tokens = len(length)
        count_F = np.bincount(features, minlength=self.n_features)
        start_N = np.cumsum(length) - length
        row_M = np.repeat(np.arange(n_tokens), length)
        order = np.argsort(features, kind="stable")
        bounds_F1 = np.concatenate([[0], np.cumsum(count_F)])
        n_neighbours = min(n_neighbours, self.n_features - 1)
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"jaccard": [], "pmi": []}
        for first in range(0, self.n_features, block := max(1, BLOCK_BYTES // (8 * self.n_features))):
            last = min(first + block, self.n_features)
            entries = order[bounds_F1[first] : bounds_F1[last]]
            together_RF = self._together(features, row_M, start_N, length, entries, first, last)
            n_a, n_b = count_F[first:last, None], count_F[None, :]
            with np.errstate(divide="ignore", invalid="ignore"):
                jaccard = together_RF / (n_a + n_b - together_RF)
                pmi = np.log(n_tokens * together_RF / (n_a * n_b))
            parts["jaccard"].append(_best(np.where(together_RF > 0, jaccard, -np.inf), n_neighbours))
            parts["pmi"].append(_best(np.where(together_RF >= MIN_TOGETHER, pmi, -np.inf), n_neighbours))
        joined = {
            name: (np.concatenate([value for value, _ in part]), np.concatenate([index for _, index in part]))
            for name, part in parts.items()
        }
        return n_tokens, joined

    def _together(
        self,
        features: np.ndarray,
        row_M: np.ndarray,
        start_N: np.ndarray,
        length: np.ndarray,
        entries: np.ndarray,
        first: int,
        last: int,
    ) -> np.ndarray:
        """int64 [last - first, F]: in how many tokens both fire; 0 on the diagonal. Bounded pieces of pairs."""
        together = np.zeros((last - first) * self.n_features, np.int64)
        widest = max(int(length.max(initial=1)), 1)
        for piece in np.array_split(entries, max(1, len(entries) * widest * 16 // BLOCK_BYTES + 1)):
            n_partners = length[row_M[piece]]
            owner = np.repeat(features[piece] - first, n_partners)
            rank = np.arange(int(n_partners.sum())) - np.repeat(np.cumsum(n_partners) - n_partners, n_partners)
            partner = features[np.repeat(start_N[row_M[piece]], n_partners) + rank]
            np.add.at(together, owner * self.n_features + partner, 1)
        together_RF = together.reshape(last - first, self.n_features)
        together_RF[np.arange(last - first), np.arange(first, last)] = 0
        return together_RF


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
