"""Seeded samples of a stream by hashed priorities, and banks of the best examples per feature.

Keeping the S items of greatest hashed priority is a uniform sample without replacement which depends on the seed and
the items alone: not on batches, not on order. Keeping the S of greatest |value| gives the top examples; one
mechanism serves both.
"""

from dataclasses import dataclass

import numpy as np

_EMPTY = -np.inf


def mix(*keys: np.ndarray | int) -> np.ndarray:
    """uint64 hash of the keys' broadcast, by rounds of the splitmix64 finaliser (Steele, Lea, Flood 2014)."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = state + np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(*keys: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1) from `mix`, with 53 bits."""
    return (mix(*keys) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Candidates:
    """Items that may enter a bank, at most a few per feature, ordered by feature."""

    feature: np.ndarray  # int64 [C]
    priority: np.ndarray  # float64 [C], finite
    number: np.ndarray  # int64 [C]: what the item is; of equal priorities the lower wins
    gram: np.ndarray  # uint64 [C]: at most one item of a feature is kept per gram

    def select(self, index: np.ndarray) -> "Candidates":
        """Those at these places."""
        return Candidates(self.feature[index], self.priority[index], self.number[index], self.gram[index])


class Bank:
    """S slots per feature for the items of greatest priority, one per gram.

    Exact for a stream of any length: an item that belongs to the final best S belongs to the best S when it comes,
    since the running maximum of each gram only grows.
    """

    def __init__(self, n_features: int, n_slots: int) -> None:
        self.priority_FS = np.full((n_features, n_slots), _EMPTY)
        self.number_FS = np.full((n_features, n_slots), np.iinfo(np.int64).max)
        self.gram_FS = np.zeros((n_features, n_slots), np.uint64)

    def offer(self, items: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take in what is good enough: (index into items, feature, slot) of each item that entered.

        The caller overwrites what it stores at (feature, slot).
        """
        hopeful = np.flatnonzero(items.priority >= self.priority_FS.min(axis=1, initial=np.inf)[items.feature])
        if not len(hopeful):
            return hopeful, hopeful, hopeful
        n_slots = self.priority_FS.shape[1]
        owners, row, column = _by_feature(items.feature[hopeful])
        shape = (len(owners), n_slots + int(column.max()) + 1)
        priority, number = np.full(shape, _EMPTY), np.full(shape, np.iinfo(np.int64).max)
        gram, source = np.zeros(shape, np.uint64), np.full(shape, -1)
        priority[:, :n_slots], number[:, :n_slots] = self.priority_FS[owners], self.number_FS[owners]
        gram[:, :n_slots] = self.gram_FS[owners]
        place = (row, n_slots + column)
        chosen = items.select(hopeful)
        priority[place], number[place], gram[place] = chosen.priority, chosen.number, chosen.gram
        source[place] = hopeful
        survives = _best(priority, number, gram, n_slots)
        entry_row, entry_column = np.nonzero(survives & (source >= 0))
        # the j-th entry of a feature goes to its j-th free slot: there are at least as many free ones, of which those
        # that were emptied now come first, and all of these are filled: the best of more items are no fewer
        free = np.argsort(survives[:, :n_slots], axis=1, kind="stable")
        feature = owners[entry_row]
        slot = free[entry_row, _by_feature(entry_row)[2]]
        index = source[entry_row, entry_column]
        for own, new in (
            (self.priority_FS, items.priority),
            (self.number_FS, items.number),
            (self.gram_FS, items.gram),
        ):
            own[feature, slot] = new[index]
        return index, feature, slot

    def ranked(self, feature: int) -> np.ndarray:
        """The feature's filled slots, best first."""
        order = np.lexsort((self.number_FS[feature], -self.priority_FS[feature]))
        return order[np.isfinite(self.priority_FS[feature][order])]


def _by_feature(sorted_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distinct ids, index of each item's id among them, rank of each item within its id)."""
    distinct, row, counts = np.unique(sorted_ids, return_inverse=True, return_counts=True)
    start = np.cumsum(counts) - counts
    return distinct, row, np.arange(len(sorted_ids)) - start[row]


def _best(priority: np.ndarray, number: np.ndarray, gram: np.ndarray, n_best: int) -> np.ndarray:
    """bool of the same shape: per row the n_best finite entries of greatest priority, one per gram."""
    by_gram = np.lexsort((number, -priority, gram), axis=1)
    same = np.zeros(gram.shape, bool)
    sorted_gram = np.take_along_axis(gram, by_gram, 1)
    filled = np.isfinite(np.take_along_axis(priority, by_gram, 1))
    same[:, 1:] = (sorted_gram[:, 1:] == sorted_gram[:, :-1]) & filled[:, 1:] & filled[:, :-1]
    repeated = np.zeros(gram.shape, bool)
    np.put_along_axis(repeated, by_gram, same, 1)
    effective = np.where(repeated, _EMPTY, priority)
    order = np.lexsort((number, -effective), axis=1)[:, :n_best]
    best = np.zeros(gram.shape, bool)
    np.put_along_axis(best, order, True, 1)
    return best & np.isfinite(effective)
