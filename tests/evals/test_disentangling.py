"""Ablation of features that stand for one class alone, and of ones that stand for none."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted_classes import N_CLASSES, noise, planted_subject
from small_hosts import by_name, scaled_copy

from saetools.evals.disentangling import Disentangling, _Coded, _Targets
from saetools.evals.labelled import SPLITS, LabelledRows
from saetools.evals.probes import Probe, encode_rows

SMALL = {"n_train": 60, "n_test": 40, "min_rows": 15, "n_ablated": (2,)}


def test_planted_features_are_targeted():
    found = by_name(Disentangling(**SMALL).run(planted_subject()))
    # a class' own feature is all that its probe reads: accuracy falls from 1 to 1/2, others stay
    assert found["tpp_2"].value > 0.3
    assert found["tpp_2"].value > found["tpp_2_random"].value + 0.1
    assert found["tpp_dense"].value > 0.3
    assert found["tpp_2"].n >= 10


def test_spurious_features_are_removed():
    """A target that speaks as softly as its spurious partner is repaired by taking the partner's feature out."""
    found = by_name(Disentangling(**SMALL).run(planted_subject()))
    assert found["scr_2"].series.keys() >= {"keyword without nested", "operator without nested"}
    assert found["scr_2"].value > 0.4
    assert found["scr_2"].value > found["scr_2_random"].value + 0.2


def test_the_interval_is_over_test_documents():
    record = by_name(Disentangling(**SMALL).run(planted_subject()))["scr_2"]
    assert record.n == len(record.series) <= 4 and record.n_unit == "pairs"
    low, high = record.spread
    assert low < record.value < high and record.value == pytest.approx(np.mean(list(record.series.values())))
    few = by_name(Disentangling(**SMALL, n_tokens=5500).run(planted_subject()))["scr_2"]
    assert few.value is not None and few.spread is None and "test documents are too few" in few.note


def test_pairs_that_mislead_no_probe_beyond_doubt_are_left_out():
    """Of rows that are noise both probes are at chance: their gap is a few test rows, of either sign."""
    make = lambda document, positions: torch.from_numpy(noise(document, positions)).float()  # noqa: E731
    subject, n_by_chance = planted_subject(make, scaled_copy(N_CLASSES, 1.0)), 0
    for seed in range(3):
        of_seed = replace(subject, seed=seed)
        record = by_name(Disentangling(**SMALL).run(of_seed))["scr_2"]
        assert record.value is None and "misleads" in record.note
        n_by_chance += by_name(Disentangling(**SMALL, least_gap=0.01, least_gap_errors=0).run(of_seed))["scr_2"].n
    assert n_by_chance > 0
    assert by_name(Disentangling(**SMALL, least_gap=1.0).run(planted_subject()))["scr_2"].value is None


def test_a_gap_counts_by_its_standard_errors_over_documents():
    gap_N = np.r_[np.ones(8), np.zeros(32)]  # 0.2, with a standard error of 0.064
    pair = SimpleNamespace(is_large_enough=True, gap_N=gap_N, document_N=np.arange(40))
    counts = [Disentangling(least_gap_errors=errors)._counts(pair) for errors in (3.0, 3.2)]
    pair.document_N = np.arange(40) // 8  # the whole gap is of one document
    assert [*counts, Disentangling()._counts(pair)] == [True, False, False]


def test_few_classes_have_no_interval_and_say_so():
    few = Disentangling(**SMALL)._over_classes("tpp_2", {"self": 0.1, "import": 0.3}, 0)
    assert few.value == 0.2 and few.spread is None and few.note == "2 classes are too few for an interval"


def test_projection_leaves_the_mean_of_the_scores_alone():
    groups = {"a": np.arange(30), "not a": np.arange(30, 60), "b": np.arange(30), "not b": np.arange(30, 60)}
    members = {(group, split): chosen for group, chosen in groups.items() for split in SPLITS}
    bench = _Targets(LabelledRows(torch.randn(60, 4) + 3, np.zeros(60), members, 60), ["a", "b"])
    left_N = bench.scores_NC[:, 0] - bench.projected("a")[:, 0]
    np.testing.assert_allclose(left_N, bench.scores_NC[:, 0].mean(), rtol=1e-6)
    assert bench.before["a"] > 0.5 and bench.targeted("a", bench.scores_NC) == 0, "what falls for all is not targeted"


def test_what_ablation_takes_from_scores_by_dense_algebra():
    dictionary = scaled_copy(N_CLASSES, 1.0)
    x, w = torch.randn(50, N_CLASSES), torch.randn(N_CLASSES, 3).double()
    coded = _Coded.of(dictionary, encode_rows(dictionary, x))
    features = torch.tensor([1, 4, N_CLASSES + 2])
    code = dictionary.encode(x).to_dense().detach()
    ablated = (x - code[:, features] @ dictionary.W_dec_FD.detach()[features]).double()
    expected = x.double() @ w - ablated @ w
    np.testing.assert_allclose(coded.taken(features, w.numpy()), expected.numpy(), atol=1e-6)
    assert not coded.taken(torch.zeros(0, dtype=torch.long), w.numpy()).any()
    rows, y = np.arange(50), np.arange(50) % 3 == 0
    inside, outside = (code.double()[torch.from_numpy(here)].mean(0) for here in (y, ~y))
    effect_F = (inside - outside) * (dictionary.W_dec_FD.detach().double() @ w[:, 0])
    assert effect_F.topk(5).indices.equal(coded.most_effective(Probe(w[:, 0].numpy(), 0.0), rows, y, 5))
