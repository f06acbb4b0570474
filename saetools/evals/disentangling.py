"""Do the features of one class leave the others alone? Targeted probe perturbation and spurious-correlation removal.

Probes are logistic regressions on whole rows. A feature's effect on the probe w of class c is

    effect_f = (mean code inside c - mean code outside) * <d_f, w>          over training rows

and ablating a set S turns x into x - sum over f in S of a_f d_f: the reconstruction error stays. Probes are linear, so
that their scores change by - sum over f in S of a_f <d_f, w>.

    tpp_<n>    targeted probe perturbation: for each class c the n features of greatest effect on c's probe are ablated;
               mean over c of (fall of c's test accuracy - mean fall of the other classes' accuracies)
    tpp_<n>_random   the same with random atoms (probes.py): the floor
    tpp_dense  the rows lose their component along the probe's w instead: the ceiling of a single direction
    scr_<n>    spurious-correlation removal: for each pair (target, spurious) of classes, a probe of the target is
               trained where the two always agree; the n features of greatest effect of the spurious class (between
               spurious and not, target balanced) on that probe are ablated. Mean over pairs of (accuracy after -
               before) / (accuracy of a probe trained on balanced rows - before), on balanced test rows
    scr_<n>_random   the floor

A pair counts where what it divides by, the gap that the balanced probe closes, is at least `least_gap` and at least
`least_gap_errors` of its standard errors over test documents or rows, the greater (documents may be few): of a smaller
one the quotient is noise. Intervals of tpp resample classes, of scr test documents, for these pairs, probes and
features; there is none over fewer than 8. Sources: SAEBench (Karvonen et al. 2025, arXiv 2503.09532), after Marks et
al. 2024 (SHIFT). Both measures have been doubted (arXiv 2605.18229): dictionaries with few living features score well.
Read them beside dead_fraction. Cost: as probing. Cannot tell: effects through later layers, nor, with the few pairs
there are, what another pair would give.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.evals.base import EvalRecord, Evaluation, Subject, Tick, no_tick
from saetools.evals.bootstrap import mean_ratio, ratio_sums, standard_error, too_few
from saetools.evals.labelled import (
    LabelledConfig,
    LabelledRows,
    class_groups,
    collect_labelled,
    python_labeller,
    usable_classes,
)
from saetools.evals.probes import Firings, Probe, encode_rows, random_dictionary, train_probe
from saetools.evals.python_labels import CLASSES

PAIRS = (("string", "call_argument"), ("keyword", "nested"), ("attribute", "call_argument"), ("operator", "nested"))
NO_PAIR = "no pair of classes whose correlation misleads a probe by least_gap and least_gap_errors"


@dataclass(frozen=True)
class _Coded:
    """Rows in the code of one dictionary, and what its features do to probes."""

    code: Firings
    atoms_FD: np.ndarray  # float64

    @staticmethod
    def of(dictionary: Dictionary, code: Firings) -> "_Coded":
        return _Coded(code, dictionary.directions().cpu().double().numpy())

    def most_effective(self, probe: Probe, rows: np.ndarray, y_N: np.ndarray, n: int) -> Tensor:
        """The n features of greatest effect on the probe between the positive and the other rows."""
        effect_F = self.code.mean_difference_F(rows, y_N) * torch.from_numpy(self.atoms_FD @ probe.w_D)
        return effect_F.topk(min(n, len(effect_F))).indices

    def taken(self, features: Tensor, w_DC: np.ndarray) -> np.ndarray:
        """float64 [N, C]: sum of a_f <d_f, w_c> over the features: taken from each probe by ablation."""
        taken_NC = np.zeros((self.code.n_rows, w_DC.shape[1]))
        for feature in features.tolist():
            entries = self.code.of_feature(feature)
            effect_C = self.atoms_FD[feature] @ w_DC
            taken_NC[self.code.row_M[entries].numpy()] += self.code.value_M[entries].numpy()[:, None] * effect_C
        return taken_NC


class Disentangling(Evaluation, name="disentangling"):
    """TPP and SCR on Python token classes, between a random floor and a ceiling."""

    needs_host = True
    cost = "one pass of the host to the point; logistic regressions"

    class Config(LabelledConfig):
        """Numbers of features."""

        n_ablated: tuple[PositiveInt, ...] = Field((2, 10, 50), min_length=1, description="numbers of features ablated")
        n_train: int = Field(400, gt=0, description="training rows per class and side, and per cell of a pair")
        n_test: int = Field(200, gt=0, description="test rows per class and side, and per cell of a pair")
        least_gap: float = Field(0.1, gt=0, le=1, description="in accuracy, between the probes of a pair that counts")
        least_gap_errors: float = Field(3.0, ge=0, description="the same gap in its standard errors")

    config: Config

    @property
    def n_tokens(self) -> int:
        return self.config.n_tokens

    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        groups = class_groups() | _cells()
        per_group = self.config.n_train, self.config.n_test
        rows = collect_labelled(subject, python_labeller, groups, self.config.n_tokens, per_group, tick)
        own = _Coded.of(subject.dictionary, encode_rows(subject.dictionary, rows.x_ND))
        floor = random_dictionary(subject.dictionary, rows.x_ND, own.code, subject.seed)
        random, seed = _Coded.of(floor, encode_rows(floor, rows.x_ND)), subject.seed
        return [*self._tpp(rows, own, random, seed), *self._scr(rows, own, random, seed)]

    def _tpp(self, rows: LabelledRows, own: _Coded, random: _Coded, seed: int) -> list[EvalRecord]:
        bench = _Targets(rows, usable_classes(rows, self.config.min_rows))
        records = []
        for n in self.config.n_ablated:
            for suffix, coded in (("", own), ("_random", random)):
                found = {name: bench.targeted(name, bench.ablated(coded, name, n)) for name in bench.names}
                records.append(self._over_classes(f"tpp_{n}{suffix}", found, seed))
        dense = {name: bench.targeted(name, bench.projected(name)) for name in bench.names}
        return [*records, self._over_classes("tpp_dense", dense, seed)]

    def _over_classes(self, name: str, found: dict[str, float], seed: int) -> EvalRecord:
        series = {key: [value] for key, value in found.items()}
        return self.mean_record(name, list(found.values()), "accuracy", "classes", seed, series=series)

    def _scr(self, rows: LabelledRows, own: _Coded, random: _Coded, seed: int) -> list[EvalRecord]:
        usable = [pair for pair in PAIRS if min(rows.size(_cell(*pair, t, s)) for t in (0, 1) for s in (0, 1)) > 0]
        x_ND = rows.x_ND.double().numpy()
        pairs = [_Pair(rows, x_ND, *pair, self.config.min_rows) for pair in usable]
        pairs = [pair for pair in pairs if self._counts(pair)]
        return [
            self._over_pairs(f"scr_{n}{suffix}", [(pair, pair.gained(coded, n)) for pair in pairs], seed)
            for n in self.config.n_ablated
            for suffix, coded in (("", own), ("_random", random))
        ]

    def _counts(self, pair: "_Pair") -> bool:
        """Whether the gap between the pair's probes is there beyond doubt."""
        if not pair.is_large_enough:
            return False
        by_row = np.arange(len(pair.gap_N))
        error = max(standard_error(pair.gap_N, groups) for groups in (pair.document_N, by_row))
        return float(pair.gap_N.mean()) >= max(self.config.least_gap, self.config.least_gap_errors * error)

    def _over_pairs(self, name: str, found: "list[tuple[_Pair, np.ndarray]]", seed: int) -> EvalRecord:
        """The mean over pairs of gained / gap, test documents resampled for the interval."""
        unit, n_unit = "fraction of the gap closed", "pairs"
        if not found:
            return self.record(name, None, unit, 0, n_unit=n_unit, note=NO_PAIR)
        sums = ratio_sums([(pair.document_N, pair.gap_N, gained_N) for pair, gained_N in found])
        series = {pair.name: [gained_N.sum() / pair.gap_N.sum()] for pair, gained_N in found}
        note = too_few(len(np.unique(np.concatenate([pair.document_N for pair, _ in found]))), "test documents")
        spread = None if note else sums.interval(mean_ratio, seed)
        value, n = sums.value(mean_ratio), len(found)
        return self.record(name, value, unit, n, n_unit=n_unit, spread=spread, series=series, note=note)


class _Targets:
    """A probe per class, and what an intervention does to all of them: it is given by what it takes from the scores."""

    def __init__(self, rows: LabelledRows, names: list[str]) -> None:
        self.names, x_ND = names, rows.x_ND.double().numpy()
        self.train = {name: rows.task(name, f"not {name}", "train") for name in names}
        self.test = {name: rows.task(name, f"not {name}", "test") for name in names}
        self.probes = {name: train_probe(x_ND[chosen], y) for name, (chosen, y) in self.train.items()}
        self.w_DC = np.stack([self.probes[name].w_D for name in names], 1)
        self.scores_NC = np.stack([self.probes[name].scores(x_ND) for name in names], 1)
        self.before = self.accuracies(self.scores_NC)

    def ablated(self, coded: _Coded, name: str, n: int) -> np.ndarray:
        """[N, C]: of ablating the n features of greatest effect on the class' probe."""
        return coded.taken(coded.most_effective(self.probes[name], *self.train[name], n), self.w_DC)

    def projected(self, name: str) -> np.ndarray:
        """[N, C]: of removing the rows' component along the probe's w, but for its mean."""
        w_D, scores_N = self.probes[name].w_D, self.scores_NC[:, self.names.index(name)]
        along_N = (scores_N - scores_N[self.train[name][0]].mean()) / max(w_D @ w_D, 1e-30)
        return along_N[:, None] * (w_D @ self.w_DC)

    def targeted(self, name: str, taken_NC: np.ndarray) -> float:
        """Fall of the class' accuracy, less the mean fall of the others'."""
        after = self.accuracies(self.scores_NC - taken_NC)
        falls = {other: self.before[other] - after[other] for other in self.names}
        others = [fall for other, fall in falls.items() if other != name]
        return falls[name] - (float(np.mean(others)) if others else 0.0)

    def accuracies(self, scores_NC: np.ndarray) -> dict[str, float]:
        found = {}
        for c, name in enumerate(self.names):
            chosen, y = self.test[name]
            found[name] = float(((scores_NC[chosen, c] > 0) == y).mean())
        return found


class _Pair:
    """A target class with a spurious one that always agrees with it in the training rows."""

    def __init__(self, rows: LabelledRows, x_ND: np.ndarray, target: str, spurious: str, min_rows: int) -> None:
        self.name = f"{target} without {spurious}"
        cells = {(t, s): _cell(target, spurious, t, s) for t in (0, 1) for s in (0, 1)}
        sizes = {split: min(len(rows.members[cell, split]) for cell in cells.values()) for split in ("train", "test")}
        self.is_large_enough = min(sizes.values()) >= min_rows
        if not self.is_large_enough:
            return
        part = {
            split: {key: rows.members[cell, split][:n] for key, cell in cells.items()} for split, n in sizes.items()
        }
        self.test, self.test_y = _joined(part["test"], by=0)
        balanced, balanced_y = _joined(part["train"], by=0)
        self.balanced, self.spurious_y = _joined(part["train"], by=1)
        biased, biased_y = _joined({key: part["train"][key] for key in ((1, 1), (0, 0))}, by=0)
        self.document_N = rows.document_N[self.test]
        self.biased = train_probe(x_ND[biased], biased_y)
        self.scores_N = self.biased.scores(x_ND[self.test])
        self.before_N = (self.scores_N > 0) == self.test_y
        right_N = train_probe(x_ND[balanced], balanced_y).correct(x_ND[self.test], self.test_y)
        self.gap_N = right_N * 1.0 - self.before_N  # on each test row, what the balanced probe is better by

    def gained(self, coded: _Coded, n: int) -> np.ndarray:
        """float64 [N]: on each test row, what the biased probe is better by after the ablation."""
        features = coded.most_effective(self.biased, self.balanced, self.spurious_y, n)
        taken_N = coded.taken(features, self.biased.w_D[:, None])[self.test, 0]
        return ((self.scores_N - taken_N > 0) == self.test_y) * 1.0 - self.before_N


def _joined(parts: dict[tuple[int, int], np.ndarray], by: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows, with y = the target (by=0) or the spurious class (by=1) of their cell."""
    rows = np.concatenate(list(parts.values()))
    return rows, np.concatenate([np.full(len(chosen), bool(key[by])) for key, chosen in parts.items()])


def _cell(target: str, spurious: str, t: int, s: int) -> str:
    return f"{target}={t} {spurious}={s}"


def _cells() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The four groups of each pair."""
    groups: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for target, spurious in PAIRS:
        i, j = CLASSES.index(target), CLASSES.index(spurious)
        for t in (0, 1):
            for s in (0, 1):
                groups[_cell(target, spurious, t, s)] = lambda found, i=i, j=j, t=t, s=s: (  # type: ignore[misc]
                    (found[:, i] == t) & (found[:, j] == s)
                )
    return groups
