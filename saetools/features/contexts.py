"""Examples of each feature, gathered while the stream passes: where they are, and the feature's values around them.

The unit is a context: one host window in which the feature fires, at its peak (the value of greatest magnitude, the
first of equals). A context is never shown with a value beyond its peak, so that it lies in the band it is shown in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from saetools.features.firings import Firings
from saetools.features.records import N_BANDS, N_BINS, Example, bin_edges, bin_of
from saetools.features.sampling import Bank, Candidates, mix, uniform
from saetools.text.base import TokenBatch

MANY_WINDOWS = 4096
GRAM_BEFORE, GRAM_AFTER = 4, 3  # the 8-gram around a peak by which contexts are de-duplicated


@dataclass(frozen=True)
class Window:
    """A host window that some example needs."""

    ids: np.ndarray  # int32 [T]
    document: int
    positions: np.ndarray  # int32 [T]; -1 at BOS and padding

    def span(self, peak: int, before: int, after: int) -> tuple[int, int]:
        """[start, stop) of the tokens of the document that are at most `before` and `after` columns from the peak."""
        first, last = self.ends
        return max(peak - before, first), min(peak + after, last) + 1

    @cached_property
    def ends(self) -> tuple[int, int]:
        """First and last column with a token of the document."""
        real = np.flatnonzero(self.positions >= 0)
        return int(real[0]), int(real[-1])


@dataclass(frozen=True)
class WindowTexts:
    """The text of the needed windows by their numbers, one string per column, and the documents' ids."""

    tokens: Mapping[int, list[str]] = field(default_factory=dict)
    document_ids: Mapping[int, str] = field(default_factory=dict)

    def cut(self, band: str, number: int, window: Window, peak: int, columns: slice, values: np.ndarray) -> Example:
        """The example that shows these columns of a window."""
        return Example(
            band,
            self.document_ids[window.document],
            int(window.positions[columns.start]),
            peak - columns.start,
            tuple(self.tokens[number][columns]),
            tuple(values.tolist()),
        )


class Contexts:
    """The top, random and uniform contexts of every feature, in memory that depends on F alone.

    `top`: greatest peaks, one per 8-gram around the peak. `random`: a uniform sample of the contexts in which the
    feature fires; split into fifths by the feature's own distribution of peaks. `uniform`: the same random places of
    the corpus for all features. Memory: about 4 (before + after + 1 + 12) (n_top + n_random) bytes a feature, and at
    most one window's ids per slot.
    """

    def __init__(
        self, n_features: int, n_top: int, n_random: int, n_uniform: int, before: int, after: int, seed: int
    ) -> None:
        self.before, self.after, self.seed = before, after, seed
        self.banks = {"top": Bank(n_features, n_top), "random": Bank(n_features, n_random)}
        self.columns = {name: np.zeros(bank.priority_FS.shape, np.int32) for name, bank in self.banks.items()}
        width = before + after + 1
        self.values = {
            name: np.zeros((*bank.priority_FS.shape, width), np.float32) for name, bank in self.banks.items()
        }
        self.peak_counts_FB = np.zeros((n_features, N_BINS), np.uint32)
        self.windows: dict[int, Window] = {}
        self.uniform = _UniformPlaces(n_uniform, seed)

    def add(self, firings: Firings, tokens: TokenBatch) -> None:
        """Take in one batch. No loop over tokens or firings; one over windows that become needed."""
        peak = firings.peaks()
        feature, window, column = firings.feature_M[peak], firings.window_M[peak], firings.column_M[peak]
        magnitude = np.abs(firings.value_M[peak]).astype(np.float64)
        number_B = window_numbers(tokens)
        number = number_B[window]
        np.add.at(self.peak_counts_FB, (feature, bin_of(magnitude)), 1)
        offers = {
            "top": Candidates(feature, magnitude, number, _grams(tokens.ids_BT, window, column)),
            "random": Candidates(feature, uniform(self.seed, feature, number), number, mix(number)),
        }
        for name, items in offers.items():
            index, owner, slot = self.banks[name].offer(items)
            offsets = np.arange(-self.before, self.after + 1)
            around = firings.values_at(owner[:, None], window[index, None], column[index, None] + offsets)
            self.values[name][owner, slot] = around
            self.columns[name][owner, slot] = column[index]
            self._need(np.unique(window[index]), tokens, number_B)
        self._need(self.uniform.add(firings, tokens, number_B), tokens, number_B)
        self._forget_unused()

    def _need(self, windows: np.ndarray, tokens: TokenBatch, number_B: np.ndarray) -> None:
        for row in windows.tolist():
            ids, positions = tokens.ids_BT[row].astype(np.int32), tokens.position_BT[row].astype(np.int32)
            self.windows[int(number_B[row])] = Window(ids, int(tokens.document_B[row]), positions)

    def _forget_unused(self) -> None:
        """Drop windows that no slot refers to, once they are half of those kept and those are many."""
        if len(self.windows) < MANY_WINDOWS:
            return
        used = self.needed()
        if len(used) * 2 < len(self.windows):
            self.windows = {number: self.windows[number] for number in used.tolist()}

    def needed(self) -> np.ndarray:
        """Numbers of the windows that examples lie in."""
        kept = [bank.number_FS[np.isfinite(bank.priority_FS)] for bank in self.banks.values()]
        return np.unique(np.concatenate([*kept, self.uniform.numbers()]))

    def examples(self, feature: int, texts: WindowTexts) -> list[Example]:
        """All examples of one feature, band by band in the order of BAND_TITLES, the strongest of a band first."""
        edges = peak_quantiles(self.peak_counts_FB[feature])
        found = [self._example("top", feature, slot, texts) for slot in self.ranked("top", feature)]
        sampled = [self._example("random", feature, slot, texts) for slot in self.ranked("random", feature)]
        banded = [replace(example, band=band_of(example.value, edges)) for example in sampled]
        found += sorted(banded, key=lambda example: (example.band, abs(example.value)), reverse=True)
        found += [self._uniform_example(feature, number, peak, texts) for number, peak in self.uniform.places()]
        return found

    def ranked(self, name: str, feature: int) -> list[int]:
        """Filled slots of a bank, best first; examples of a band come in this order for `top`."""
        return self.banks[name].ranked(feature).tolist()

    def _example(self, name: str, feature: int, slot: int, texts: WindowTexts) -> Example:
        number = int(self.banks[name].number_FS[feature, slot])
        peak = int(self.columns[name][feature, slot])
        start, stop = self.windows[number].span(peak, self.before, self.after)
        shift = self.before - peak
        values = self.values[name][feature, slot, start + shift : stop + shift]
        return texts.cut(name, number, self.windows[number], peak, slice(start, stop), values)

    def _uniform_example(self, feature: int, number: int, peak: int, texts: WindowTexts) -> Example:
        start, stop = self.windows[number].span(peak, self.before, self.after)
        values = self.uniform.values(number, feature)[start:stop]
        return texts.cut("uniform", number, self.windows[number], peak, slice(start, stop), values)


class _UniformPlaces:
    """A uniform sample of the corpus' tokens, with the firings of all features in their windows."""

    def __init__(self, n_places: int, seed: int) -> None:
        self.n_places, self.seed = n_places, seed
        self._kept: list[tuple[float, int, int, Firings]] = []  # (priority, number, column, firings of the window)

    def add(self, firings: Firings, tokens: TokenBatch, number_B: np.ndarray) -> np.ndarray:
        """Windows of the batch that now are in the sample."""
        window, column = np.nonzero(tokens.keep_BT)
        number = number_B[window]
        priority = uniform(self.seed, 1, number, column)
        entered = []
        for index in np.argsort(-priority)[: self.n_places].tolist():
            if len(self._kept) == self.n_places and priority[index] <= self._kept[-1][0]:
                break
            inside = firings.window_M == window[index]
            part = Firings(
                firings.feature_M[inside],
                np.zeros(int(inside.sum()), np.int64),
                firings.column_M[inside],
                firings.value_M[inside],
                0,
                firings.width,
            )
            self._kept.append((float(priority[index]), int(number[index]), int(column[index]), part))
            self._kept = sorted(self._kept, key=lambda kept: -kept[0])[: self.n_places]
            entered.append(int(window[index]))
        return np.unique(np.array(entered, np.int64))

    def places(self) -> Iterator[tuple[int, int]]:
        """(number of the window, column) of each place."""
        return iter([(number, column) for _, number, column, _ in self._kept])

    def numbers(self) -> np.ndarray:
        return np.array([number for number, _ in self.places()], np.int64)

    def values(self, number: int, feature: int) -> np.ndarray:
        """float32 [T]: the feature's values along a sampled window."""
        firings = next(kept[3] for kept in self._kept if kept[1] == number)
        return firings.values_at(np.array(feature), np.array(0), np.arange(firings.width))


def window_numbers(tokens: TokenBatch) -> np.ndarray:
    """int64 [B]: document and position of each window's first token in one number, whatever batch it came in."""
    first_B = (tokens.position_BT >= 0).argmax(axis=1)
    position_B = tokens.position_BT[np.arange(len(first_B)), first_B].clip(min=0)
    return (tokens.document_B.astype(np.int64) << 32) | position_B


def peak_quantiles(counts_B: np.ndarray) -> np.ndarray:
    """float64 [N_BANDS - 1] ascending magnitudes that split a feature's context peaks into fifths.

    The quantile of a log-histogram: log-linear inside the bin where the cumulative count passes q.
    """
    total = counts_B.sum()
    if not total:
        return np.full(N_BANDS - 1, np.inf)
    cumulative = np.cumsum(counts_B.astype(np.float64))
    wanted = np.arange(1, N_BANDS) / N_BANDS * total
    place = np.searchsorted(cumulative, wanted)
    inside = (wanted - (cumulative[place] - counts_B[place])) / counts_B[place]
    edges = bin_edges()
    return edges[place] * (edges[place + 1] / edges[place]) ** inside


def band_of(value: float, edges: np.ndarray) -> str:
    """`q1` (weakest) to `q5`: the fifth that |value| lies in; edges[j - 1] <= |value| < edges[j] is q(j + 1)."""
    return f"q{int(np.searchsorted(edges, abs(value), side='right')) + 1}"


def _grams(ids_BT: np.ndarray, window: np.ndarray, column: np.ndarray) -> np.ndarray:
    """uint64 hash of the 8 token ids around each peak; places outside the window count as id -1."""
    hashes: list[np.ndarray] = []
    for offset in range(-GRAM_BEFORE, GRAM_AFTER + 1):
        at = column + offset
        inside = (at >= 0) & (at < ids_BT.shape[1])
        hashes.append(np.where(inside, ids_BT[window, np.clip(at, 0, ids_BT.shape[1] - 1)], -1))
    return mix(*hashes)
