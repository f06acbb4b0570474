"""Feature absorption on a first-character task: does a letter's feature fall silent where another one speaks for it?

For each letter l, on tokens that begin (after blanks) with an ASCII letter: a dense probe w (logistic regression) for
"begins with l"; the main features of l are the `n_main` of greatest mean code difference over the training rows. A
feature of signed codes counts as two: one where its code is positive and, with atom -d, one where it is negative. Over
test tokens of l that the probe gets right:

    absorption         share at which every main feature is silent and one firing feature f, with cos(d_f, w) of at
                       least `least_cosine`, carries at least `least_share` of the probe's projection:
                       a_f <d_f, w> >= least_share * <x - mean, w>;  mean over letters
    absorption_random  the same with random atoms (probes.py), that is without letter features: no floor, since its
                       main features are silent more often and large random codes carry a probe by chance; a
                       trained dictionary may be below it, and is not shown to absorb where it is not above it
    first_letter_f1    F1 of "some main feature fires" as a test for l; first_letter_dense: accuracy of the dense probe

Intervals resample letters. Source: Chanin et al. 2024 (arXiv 2409.14507) and SAEBench, which ask a model to spell;
here the characters themselves are the labels, so that small models can be judged. Cost: as probing. Cannot tell:
absorption of anything but spelling; where the host hardly represents spelling (first_letter_dense near 0.5) the
figure means nothing.
"""

import string
from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.evals.base import EvalRecord, Evaluation, Subject, Tick, no_tick
from saetools.evals.labelled import LabelledConfig, LabelledRows, class_groups, collect_labelled, usable_classes
from saetools.evals.probes import Firings, Probe, encode_rows, random_dictionary, train_probe

LETTERS = tuple(string.ascii_lowercase)


class Absorption(Evaluation, name="absorption"):
    """Letters whose feature is silent while a more specific one carries them."""

    needs_host = True
    cost = "one pass of the host to the point; logistic regressions"

    class Config(LabelledConfig):
        """What counts as absorbed."""

        n_train: int = Field(400, gt=0, description="training rows per letter and side")
        n_test: int = Field(200, gt=0, description="test rows per letter and side")
        n_main: int = Field(2, gt=0, description="features taken for a letter's own")
        least_cosine: float = Field(0.1, gt=0, le=1, description="of an absorbing atom with the probe")
        least_share: float = Field(0.4, gt=0, le=1, description="of the probe's projection carried by one feature")

    config: Config

    @property
    def n_tokens(self) -> int:
        return self.config.n_tokens

    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        per_group = self.config.n_train, self.config.n_test
        groups = class_groups(LETTERS)
        groups |= {f"not {name}": _other_letter(c) for c, name in enumerate(LETTERS)}
        rows = collect_labelled(subject, first_letters, groups, self.config.n_tokens, per_group, tick)
        names = usable_classes(rows, self.config.min_rows, LETTERS)
        code = encode_rows(subject.dictionary, rows.x_ND)
        floor = random_dictionary(subject.dictionary, rows.x_ND, code, subject.seed)
        probes = {name: _probe(rows, name) for name in names}
        own = {name: self._letter(rows, name, probes[name], subject.dictionary, code.halves()) for name in names}
        floor_code = encode_rows(floor, rows.x_ND).halves()
        random = {name: self._letter(rows, name, probes[name], floor, floor_code) for name in names}
        dense = {name: _dense_accuracy(rows, name, probes[name]) for name in names}
        seed = subject.seed
        return [
            self._mean("absorption", {name: found[0] for name, found in own.items()}, "fraction of tokens", seed),
            self._mean(
                "absorption_random", {name: found[0] for name, found in random.items()}, "fraction of tokens", seed
            ),
            self._mean("first_letter_f1", {name: found[1] for name, found in own.items()}, "F1", seed),
            self._mean("first_letter_dense", dense, "accuracy", seed),
        ]

    def _letter(
        self, rows: LabelledRows, name: str, probe: Probe, dictionary: Dictionary, code: Firings
    ) -> tuple[float, float]:
        """(absorption, F1 of the main features) of one letter, by halves of features; nan: the probe is never right."""
        train, y_train = rows.task(name, f"not {name}", "train")
        test, y_test = rows.task(name, f"not {name}", "test")
        main = code.mean_difference_F(train, y_train).topk(min(self.config.n_main, code.n_features)).indices
        fires_N = (code.columns(main) != 0).any(1)
        hits = (fires_N[test] & y_test).sum()
        f1 = 2 * hits / max(fires_N[test].sum() + y_test.sum(), 1)
        right = test[y_test & probe.correct(rows.x_ND[test].double().numpy(), y_test)]
        if not len(right):
            return float("nan"), float(f1)
        carried_N = self._carried(rows, probe, dictionary.directions().cpu().double(), code)
        absorbed = ~fires_N[right] & (carried_N[right] >= self.config.least_share)
        return float(absorbed.mean()), float(f1)

    def _carried(self, rows: LabelledRows, probe: Probe, atoms_FD: Tensor, code: Firings) -> np.ndarray:
        """[N]: greatest share of the probe's projection that one aligned feature carries; 0 where that is negative."""
        w_D = torch.from_numpy(probe.w_D)
        along_F = atoms_FD @ w_D
        lengths_F = torch.linalg.vector_norm(atoms_FD, dim=1) * torch.linalg.vector_norm(w_D)
        along_F, lengths_F = torch.cat([along_F, -along_F]), torch.cat([lengths_F, lengths_F])  # of both halves
        cosine_F = along_F / lengths_F.clamp_min(1e-30)
        x_ND = rows.x_ND.double()
        total_N = (x_ND - x_ND.mean(0)) @ w_D
        aligned = cosine_F[code.feature_M] >= self.config.least_cosine
        carried_M = code.value_M[aligned] * along_F[code.feature_M[aligned]]
        best_N = torch.zeros(len(x_ND), dtype=torch.float64).scatter_reduce_(0, code.row_M[aligned], carried_M, "amax")
        return torch.where(total_N > 0, best_N / total_N.clamp_min(1e-30), 0.0).numpy()

    def _mean(self, name: str, found: dict[str, float], unit: str, seed: int) -> EvalRecord:
        values = [value for value in found.values() if value == value]
        series = {letter: [value] for letter, value in found.items() if value == value}
        return self.mean_record(name, values, unit, "letters", seed, series=series)


def first_letters(text: str, token_texts: list[str]) -> np.ndarray:
    """bool [tokens, 26]: the first character that is no blank, lower-cased; all False where it is no ASCII letter."""
    firsts = [token.strip()[:1].lower() for token in token_texts]
    return np.array([[first == letter for letter in LETTERS] for first in firsts], bool).reshape(-1, len(LETTERS))


def _other_letter(column: int) -> Callable[[np.ndarray], np.ndarray]:
    """Tokens that begin with another letter."""
    return lambda found_NC: found_NC.any(1) & ~found_NC[:, column]


def _probe(rows: LabelledRows, name: str) -> Probe:
    train, y_train = rows.task(name, f"not {name}", "train")
    return train_probe(rows.x_ND[train].double().numpy(), y_train)


def _dense_accuracy(rows: LabelledRows, name: str, probe: Probe) -> float:
    test, y_test = rows.task(name, f"not {name}", "test")
    return float(probe.correct(rows.x_ND[test].double().numpy(), y_test).mean())
