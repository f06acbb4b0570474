"""k-sparse probing: can a class of tokens be told from k features alone?

For each class (python_labels.CLASSES), on equally many rows inside and outside of it, training and test rows from
different documents: the k features of greatest |mean code inside - mean outside| over the training rows are given to a
logistic regression, whose accuracy on the test rows is

    probe_top<k>          mean over classes; chance is 0.5
    probe_top<k>_random   the same with a dictionary of random atoms and equal L0 and F: the floor
    probe_dense           a logistic regression on the whole row: the ceiling

Source: Gurnee et al. 2023 (arXiv 2305.01610); SAEBench's sparse probing (mean-difference selection). Theirs are English
data sets; these labels are exact and need no download. Classes with fewer than `min_rows` rows in a split are left out.

Cost: one pass of the host to the point over `n_tokens`; encoding of the sampled rows alone; seconds of logistic
regressions. Cannot tell: whether the host uses what is probed.
"""

from collections.abc import Callable

import numpy as np
from pydantic import Field, PositiveInt

from saetools.evals.base import EvalRecord, Evaluation, Subject, Tick, no_tick
from saetools.evals.bootstrap import mean_ratio, ratio_sums
from saetools.evals.labelled import (
    LabelledConfig,
    LabelledRows,
    class_groups,
    collect_labelled,
    python_labeller,
    usable_classes,
)
from saetools.evals.probes import Firings, encode_rows, random_dictionary, train_probe

Judge = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""class -> (test rows, whether the probe is right there)"""


class Probing(Evaluation, name="probing"):
    """Accuracy of probes on k features, against random atoms and the dense probe."""

    needs_host = True
    cost = "one pass of the host to the point; logistic regressions"

    class Config(LabelledConfig):
        """Numbers of features."""

        ks: tuple[PositiveInt, ...] = Field(
            (1, 2, 5), min_length=1, description="numbers of features given to the probe"
        )

    config: Config

    @property
    def n_tokens(self) -> int:
        return self.config.n_tokens

    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        per_group = self.config.n_train, self.config.n_test
        rows = collect_labelled(subject, python_labeller, class_groups(), self.config.n_tokens, per_group, tick)
        names = usable_classes(rows, self.config.min_rows)
        code = encode_rows(subject.dictionary, rows.x_ND)
        floor = encode_rows(random_dictionary(subject.dictionary, rows.x_ND, code, subject.seed), rows.x_ND)
        results = [self._result("probe_dense", rows, names, _dense(rows), subject.seed)]
        for k in self.config.ks:
            results.append(self._result(f"probe_top{k}", rows, names, _sparse(rows, code, k), subject.seed))
            results.append(self._result(f"probe_top{k}_random", rows, names, _sparse(rows, floor, k), subject.seed))
        return results

    def _result(self, name: str, rows: LabelledRows, names: list[str], judge: "Judge", seed: int) -> EvalRecord:
        """The mean accuracy over classes, each class in the series, documents resampled for the interval."""
        judged = [judge(task) for task in names]
        sums = ratio_sums([(rows.document_N[test], np.ones(len(test)), correct_N) for test, correct_N in judged])
        series = {task: [correct_N.mean()] for task, (_, correct_N) in zip(names, judged, strict=True)}
        return self.sums_record(name, sums, mean_ratio, "accuracy", seed, n_unit="test rows", series=series)


def _dense(rows: LabelledRows) -> Judge:
    """A probe on whole rows."""
    x_ND = rows.x_ND.double().numpy()

    def judge(name: str) -> tuple[np.ndarray, np.ndarray]:
        train, y_train = rows.task(name, f"not {name}", "train")
        test, y_test = rows.task(name, f"not {name}", "test")
        return test, train_probe(x_ND[train], y_train).correct(x_ND[test], y_test)

    return judge


def _sparse(rows: LabelledRows, code: Firings, k: int) -> Judge:
    """A probe on the k features that differ most."""

    def judge(name: str) -> tuple[np.ndarray, np.ndarray]:
        train, y_train = rows.task(name, f"not {name}", "train")
        test, y_test = rows.task(name, f"not {name}", "test")
        difference_F = code.mean_difference_F(train, y_train)
        values_Nk = code.columns(difference_F.abs().topk(min(k, len(difference_F))).indices)
        return test, train_probe(values_Nk[train], y_train).correct(values_Nk[test], y_test)

    return judge
