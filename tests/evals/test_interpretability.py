"""Features that stand for planted classes can be explained; features that stand for nothing cannot."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted_classes import N_CLASSES, noise, planted_rows, sources
from small_hosts import by_name, scaled_copy, text_subject

from saetools.errors import ConfigError, DataError
from saetools.evals.base import NotApplicableError
from saetools.evals.interpretability import Interpretability, Peak, _Bench, auc, purity
from saetools.evals.judges import NgramScorer, TextScorer
from saetools.evals.python_labels import CLASSES
from saetools.evals.run import run_evaluations
from saetools.features.records import Example
from saetools.text.base import Document

SMALL = {"n_features": 40, "n_top": 8, "n_explain": 6, "n_judge": 6, "before": 4, "after": 3}


def subject_of(make, threshold):
    dictionary = scaled_copy(N_CLASSES, 1.0)
    with torch.no_grad():
        dictionary.b_enc_F.sub_(threshold)
        dictionary.b_enc_F[N_CLASSES:] = -100  # only one sign
    return text_subject(sources(), make, dictionary, context=32)


def test_planted_classes_are_explained():
    found = by_name(Interpretability(**SMALL).run(subject_of(planted_rows, 0.8)))
    assert found["class_fuzzing"].value > 0.8
    assert found["ngram_fuzzing"].value > 0.6
    assert found["class_detection"].value > 0.6
    assert found["class_purity"].value > found["class_purity_chance"].value
    assert found["class_fuzzing"].n > 5
    low, high = found["ngram_fuzzing"].spread
    assert low < found["ngram_fuzzing"].value < high


def test_noise_is_not():
    def rows(document, positions):
        return torch.from_numpy(noise(document, positions)).float()

    found = by_name(Interpretability(**SMALL).run(subject_of(rows, 1.8)))
    for name in ("class_fuzzing", "class_detection", "ngram_detection"):
        assert found[name].value == pytest.approx(0.5, abs=0.13), name
    for name in ("token", "class"):
        chance = found[f"{name}_purity_chance"].value
        assert found[f"{name}_purity"].value == pytest.approx(chance, abs=0.1), name


class Silent:
    """What judges that explain nothing share."""

    def settings(self):
        return {"name": self.name}

    def explain(self, examples):
        return ""


def test_a_given_judge_is_asked():
    class Keyword(Silent):
        """Knows that feature `keyword` is; says yes where a marked token is one."""

        name = "oracle"

        def judge(self, explanation, items, task):
            assert task != "detection" or not any(any(item.marked) for item in items), "the silent ones are silent"
            return [
                float(any("keyword" in c for c, m in zip(item.classes, item.marked, strict=True) if m))
                for item in items
            ]

    subject = subject_of(planted_rows, 0.8)
    with torch.no_grad():
        only = torch.arange(2 * N_CLASSES) != CLASSES.index("keyword")
        subject.dictionary.b_enc_F[only] = -100
    evaluation = Interpretability([Keyword()], **SMALL)
    found = by_name(evaluation.run(subject))
    assert found["oracle_fuzzing"].value == 1 and found["oracle_fuzzing"].n == 1
    assert evaluation.settings()["scorers"] == [{"name": "oracle"}]


def test_the_order_of_items_does_not_give_the_sides_away():
    class Ordinal(Silent):
        """Says yes to the first items, whatever they are."""

        name = "ordinal"

        def judge(self, explanation, items, task):
            return list(range(len(items), 0, -1))

    found = by_name(Interpretability([Ordinal()], **SMALL).run(subject_of(planted_rows, 0.8)))
    for task in ("detection", "fuzzing"):
        assert found[f"ordinal_{task}"].n > 8 and abs(found[f"ordinal_{task}"].value - 0.5) < 0.15


def test_scorers_are_told_apart(tmp_path):
    """By name in figures, by all settings in what is stored."""

    def outcome(*scorers):
        found = []
        run_evaluations(subject_of(planted_rows, 0.8), [Interpretability(scorers, **SMALL)], tmp_path, found.append)
        return found[0]

    say_yes, say_no = (
        TextScorer(lambda prompt, say=say: f"{say} " * len(re.findall(r"^\d+:", prompt, re.M)), name=f"says{say}")
        for say in (1, 0)
    )
    assert outcome(say_yes).status == outcome(say_no).status == "computed" and outcome(say_no).status == "kept"
    assert outcome(NgramScorer()).status == outcome(NgramScorer(n_kept=1)).status == "computed"
    with pytest.raises(ConfigError, match="called ngram, ngram"):
        Interpretability([NgramScorer(), NgramScorer(n_kept=3)])


def test_what_is_not_labelled_is_not_measured_by_classes():
    subject = subject_of(planted_rows, 0.8)
    subject.tokens.corpus.items = [Document(d.id, d.text[:-1] + "(") for d in subject.tokens.corpus.items]
    found = by_name(Interpretability(**SMALL).run(subject))
    for name in ("class_purity", "class_purity_chance", "class_detection", "class_fuzzing"):
        assert found[name].value is None and found[name].n == 0 and "labels" in found[name].note, name
    assert found["token_purity"].value > 0 and found["ngram_fuzzing"].value > 0.6


def test_progress_is_told_while_rows_are_read():
    """It had stood at 0 until all of them were."""
    ticked, subject = [], subject_of(planted_rows, 0.8)
    Interpretability(**SMALL).run(subject, ticked.append)
    assert ticked == [len(rows) for _, rows in subject.heldout.batches(0)] and len(ticked) > 1


def test_text_that_cannot_be_read_ends_the_evaluation():
    """It is no property of the dictionary, for which a figure could be missing."""

    def rows(document, positions):
        raise DataError("the file went away")

    subject = subject_of(planted_rows, 0.8)
    subject.heldout.make = rows
    with pytest.raises(DataError, match="went away") as found:
        Interpretability(**SMALL).run(subject)
    assert not isinstance(found.value, NotApplicableError)


def test_silent_dictionaries_are_skipped():
    with pytest.raises(NotApplicableError, match="n_tokens"):
        Interpretability(**SMALL).run(subject_of(planted_rows, 50.0))


def test_features_of_too_few_contexts_are_not_scored():
    subject = subject_of(planted_rows, 0.8)
    many, some = (_Bench(subject, Interpretability(**SMALL | {"n_judge": n}).config) for n in (150, 40))
    n_contexts_F = np.isfinite(many.contexts.banks["random"].priority_FS).sum(1)
    enough = n_contexts_F >= SMALL["n_explain"] + 40
    assert sorted(some.chosen) == np.flatnonzero(enough).tolist()
    assert (n_contexts_F[~enough] > 0).any()


def test_purity_and_auc():
    assert purity("aaaa") == 1 and purity("abcd") == 0 and purity("aabb") == pytest.approx(0.5)
    assert auc([2, 3], [1, 0]) == 1 and auc([1], [1]) == 0.5 and auc([0], [1, 2, -1]) == pytest.approx(1 / 3)
    assert np.isnan(auc([], [1]))


def test_the_token_before_a_peak_is_of_its_pair():
    bench = SimpleNamespace(_labels_of=lambda example: None)
    for at, before in ((1, "a"), (0, "")):
        example = Example("top", "doc", 0, at, ("a", "b"), (1.0, 1.0))
        assert _Bench._peak(bench, example) == Peak(before, "ab"[at], None)


def test_weights_of_half_precision():
    subject = subject_of(planted_rows, 0.8)
    full = by_name(Interpretability(**SMALL).run(subject))
    half = by_name(Interpretability(**SMALL).run(replace(subject, dictionary=subject.dictionary.to(torch.bfloat16))))
    for name in ("token_purity", "ngram_detection", "class_fuzzing"):
        assert half[name].value == pytest.approx(full[name].value, abs=0.1), name
