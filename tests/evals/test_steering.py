"""Dose and response where both can be computed by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_classes import N_CLASSES, Reader, announcing_rows, planted_subject, sources
from pydantic import ValidationError
from scipy.stats import spearmanr
from small_hosts import D_MODEL, VOCABULARY, LinearHost, by_name, host_subject, scaled_copy, text_subject

from saetools.dictionaries.abs_topk import AbsTopK
from saetools.evals.base import with_host
from saetools.evals.python_labels import CLASSES
from saetools.evals.responses import area_under, response_columns
from saetools.evals.run import run_evaluations
from saetools.evals.sparsity import Sparsity
from saetools.evals.steering import Steering, _Bench
from saetools.evals.token_classes import _Counts, read_token_classes


def figures(subject, **settings):
    return by_name(Steering(**{"n_features": 6, "n_predictions": 60, "n_targets": 2, **settings}).run(subject))


def test_response_of_a_known_shift():
    """From uniform over V, raising one target's logit by s."""
    V, s = 8, 1.5
    before, after = torch.zeros(1, V), torch.zeros(1, V)
    after[0, 3] = s
    on, off, added, square = response_columns(before, after, torch.tensor([3]), torch.tensor([0]))[0].tolist()
    normaliser = math.log(math.exp(s) + V - 1)
    assert on == pytest.approx(s - normaliser + math.log(V))
    assert off == pytest.approx(0, abs=1e-12)  # the other tokens keep their proportions
    assert added == pytest.approx(normaliser - math.log(V))
    assert square == pytest.approx(s * s * (1 - 1 / V))
    _, off, _, _ = response_columns(before, after, torch.tensor([0]), torch.tensor([0]))[0].tolist()
    rest = V - 1
    assert off == pytest.approx(math.log((math.exp(s) + rest - 1) / rest) - s / rest)


def test_a_class_is_a_soft_set_of_tokens():
    """With members 0 or 1 it is the sum of their probabilities; a feature that lifts the class at no other's cost."""
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    targets, following = torch.tensor([2, 5]), torch.zeros(5, dtype=torch.long)
    member = torch.zeros(9, dtype=torch.float64)
    member[targets] = 1
    lifted = logits + 0.7 * member.float()
    columns = response_columns(logits, lifted, targets, following, member)
    raised = torch.log_softmax(lifted.double(), 1) - torch.log_softmax(logits.double(), 1)
    torch.testing.assert_close(columns[:, 0], raised[:, targets].mean(1))
    before, after = (torch.softmax(v.double(), 1)[:, targets].sum(1) for v in (logits, lifted))
    torch.testing.assert_close(columns[:, 4], (after / before).log())
    torch.testing.assert_close(columns[:, 5], torch.zeros(5).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(columns[:, 5], columns[:, 1])  # the same tokens are left out
    half = response_columns(logits, lifted, targets, following, 0.5 * member)
    torch.testing.assert_close(half[:, 4], columns[:, 4])  # the ratio of the class is the same
    assert (half[:, 5] > 0).all()  # the half of the tokens that counts as other has changed


def test_features_of_planted_classes_announce_what_follows_and_steer_towards_it():
    """A host that predicts from the row at hand; feature c fires where the next token is of class c."""
    subject = planted_subject(announcing_rows)
    features = list(range(N_CLASSES))
    classes = read_token_classes(subject, 10**6, 256)
    assert float(classes.members("self")[ord("s")]) > 0.1 > float(classes.members("self")[ord("(")])
    announced = classes.announced(subject, features, 0.3)
    common = [c for c, name in enumerate(CLASSES) if announced[c] is not None]
    assert len(common) > 8 and all(announced[c] == CLASSES[c] for c in common)
    assert classes.announced(subject, [2 * N_CLASSES - 1], 0.99) == [None]
    assert classes.members("comment")[ord("#")] == 1, "every one of them is of the class"
    half = text_subject(
        [text if i % 2 else text[:-1] + "(" for i, text in enumerate(sources())], announcing_rows, subject.dictionary
    )
    strongly = classes.announced(subject, features, 0.6)
    assert any(strongly) and read_token_classes(half, 10**6, 256).announced(half, features, 0.6) == strongly


def test_a_feature_that_always_fires_announces_nothing():
    counts, next_NC = _Counts(3, [0, 2]), torch.zeros(4, len(CLASSES)).double()
    next_NC[:3, 1] = 1
    counts.add(torch.arange(4), torch.zeros(4, dtype=torch.long), next_NC, torch.ones(4, dtype=torch.bool))
    assert counts.rise_KC()[0].tolist() == [0] * len(CLASSES) and (counts.rise_KC()[1] == -1).all()


def test_classes_are_targets_where_text_is_labelled():
    subject = planted_subject(announcing_rows, host=Reader())
    found = by_name(Steering(n_features=30, n_predictions=60, n_targets=2).run(subject))
    record = found["class_steering_area"]
    assert record.n >= 3 and record.value > found["class_steering_area_random"].value + 0.05
    few = by_name(Steering(n_features=2, n_predictions=60, n_class_features=4).run(subject))
    assert few["class_steering_area"].n == 4 and few["steering_area"].n == 2, "those for classes are drawn apart"
    assert few["class_steering_area"].value > few["class_steering_area_shuffled"].value + 0.05
    letters = figures(host_subject(scaled_copy(D_MODEL, 1.0)))
    assert letters["class_steering_area"].value is None and "labelled" in letters["class_steering_area"].note


def test_area():
    assert area_under([1.0], [2.0], 1.0) == pytest.approx(1.0)  # a triangle
    assert area_under([0.5], [2.0], 1.0) == pytest.approx(0.5 + 1.0)  # then flat
    assert area_under([2.0], [4.0], 1.0) == pytest.approx(1.0)  # cut inside a piece
    assert area_under([0.5, 0.25], [1.0, 3.0], 0.5) == pytest.approx((0.375 + 0.5) / 0.5)  # in order of cost


def test_influence_by_brute_force():
    """Every feature adds the same shift at every position of a linear host, up to the causal sum."""
    subject = host_subject(scaled_copy(D_MODEL, 1.0))
    found = figures(subject, n_features=12, doses=(0.1,), n_predictions=10**6)
    host, norm, squares = subject.host, subject.heldout.calibration.median_norm, []
    batch = next(iter(subject.tokens.batches(0)))
    assert found["logit_influence"].n == 12
    for d in torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)]):
        total, n = 0.0, 0
        for batch in subject.tokens.batches(0):
            keep = torch.from_numpy(batch.keep_BT)
            x = host._resid(torch.from_numpy(batch.ids_BT))
            added = keep[..., None] * 0.1 * norm * d
            change = (added + 0.1 * added.cumsum(1)) @ host.U.T
            change = change - change.mean(-1, keepdim=True)
            for b, t in torch.nonzero(keep[:, :-1] & keep[:, 1:]).tolist():
                if not float(x[b, t] @ d) > 0:  # silent
                    total, n = total + float(change[b, t].square().sum()), n + 1
        squares.append((total / n) ** 0.5 / (0.1 * norm))
    assert found["logit_influence"].value == pytest.approx(np.mean(squares), rel=1e-4)


def test_features_beat_shuffled_ones_on_their_own_targets():
    found = figures(host_subject(scaled_copy(D_MODEL, 1.0)), n_features=12, n_predictions=200)
    assert found["steering_area"].value > found["steering_area_shuffled"].value + 1, "which has targets of others"
    assert found["logit_influence"].value > 0
    assert found["perplexity_cost"].value == pytest.approx(found["steering_area"].series["loss_added"][0])
    series = found["steering_area"].series
    assert np.all(np.diff(series["off_target"]) > 0) and np.all(np.diff(series["on_target"]) > 0)
    low, high = found["steering_area"].spread
    assert low < found["steering_area"].value < high


@pytest.mark.parametrize("outliers", [False, True])
def test_attribution_is_first_order(outliers):
    """Small edits: the true change of the loss is the estimate; the dictionary's atoms are scaled to 1 %."""
    host = LinearHost()
    if outliers:  # which are not edited
        host.embedding[5] *= 30
    subject = host_subject(scaled_copy(D_MODEL, 0.01), host=host)
    record = figures(subject, n_features=12)["attribution_correlation"]
    np.testing.assert_allclose(record.series["loss_change"], record.series["first_order"], rtol=0.05, atol=2e-3)
    assert 0.98 < record.spread[0] <= record.value <= record.spread[1] <= 1 + 1e-9


def test_outliers_do_not_say_which_features_live_nor_which_way_they_point():
    host = LinearHost()
    host.embedding[5] = torch.tensor([0.0, 0, 0, 0, 0, 900])  # no letter else has so much of any
    host.embedding[:5, 5], host.embedding[6:, 5] = -1.0, -1.0
    dictionary = AbsTopK(AbsTopK.configure(n_features=D_MODEL, k=D_MODEL), D_MODEL)
    with torch.no_grad():
        for weights in (dictionary.W_enc_FD, dictionary.W_dec_FD):
            weights.copy_(torch.eye(D_MODEL))
        dictionary.b_dec_D.zero_()
    subject = host_subject(dictionary, host=host, n=40)
    parts = with_host(subject)
    bench = _Bench(subject, parts, Steering(n_predictions=10**6).config)
    assert bench.directions_FD[5, 5] == -1, "as the codes of all rows that it was made for"
    only = scaled_copy(D_MODEL, 1.0)
    with torch.no_grad():
        only.b_enc_F[5] = -100.0  # fires at outliers alone
    bench = _Bench(replace(subject, dictionary=only), parts, Steering(n_predictions=10**6).config)
    assert 5 not in bench.living and bench.fires.n_rows == len(bench.silent(5)) and bench.silent(5).all()
    x_ND = torch.cat([host._resid(w.ids_BT)[w.counted_BT] for w in bench.windows])
    fires_NF = (only.encode(x_ND).to_dense() != 0) & ~bench.splicer.outliers(x_ND)[:, None]
    assert all((~bench.silent(f)).equal(fires_NF[:, f]) for f in range(2 * D_MODEL))


def test_attribution_is_a_rank_correlation_of_more_features_than_are_steered():
    subject = host_subject(scaled_copy(D_MODEL, 1.0))
    found = figures(subject, n_features=3, n_attributed=10)
    record = found["attribution_correlation"]
    assert record.n == 10 and found["steering_area"].n == 3
    expected = spearmanr(record.series["loss_change"], record.series["first_order"]).statistic
    assert record.value == pytest.approx(expected)
    few = figures(subject, n_features=3, n_attributed=3)["attribution_correlation"]
    assert few.spread is None and few.note == "3 features are too few for an interval"


def test_one_living_feature_is_not_enough(tmp_path):
    subject = host_subject(scaled_copy(D_MODEL, 0.0))
    for bias, dead_fraction in ((0.0, 1), (1.0, 0)):  # none fires, and all fire at every prediction
        with torch.no_grad():
            subject.dictionary.W_enc_FD.zero_()
            subject.dictionary.b_enc_F.fill_(bias)
        records = by_name(run_evaluations(subject, [Steering(), Sparsity()], tmp_path))
        assert records["steering"].value is None and "raise n_predictions" in records["steering"].note
        assert records["dead_fraction"].value == dead_fraction, "the others are run all the same"


def test_targets_are_tokens_of_the_vocabulary():
    assert figures(host_subject(), n_targets=VOCABULARY + 5, doses=(0.1,))["perplexity_cost"].value is not None


def test_no_tokens_are_read_for_classes_where_none_are_wanted():
    found = figures(planted_subject(announcing_rows, host=Reader()), n_class_tokens=0)
    assert found["class_steering_area"].value is None and found["steering_area"].value is not None


def test_directions_that_are_not_of_the_residual_stream_have_no_tokens_of_their_own(tmp_path):
    class Query(LinearHost):
        def in_stream(self, point):
            return False

    (record,) = run_evaluations(host_subject(host=Query()), [Steering()], tmp_path)
    assert record.value is None and "resid is not of the residual stream" in record.note


def test_doses_ascend():
    assert Steering(doses=(0.9, 0.1)).config.doses == (0.1, 0.9)
    for doses in ((), (0.0,), (-1.0, 1.0)):
        with pytest.raises(ValidationError, match="doses"):
            Steering(doses=doses)


def test_responses_of_many_predictions_are_those_of_each():
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(150, 9, generator=generator) for _ in range(2))
    targets, following = torch.tensor([1, 2]), torch.arange(150) % 9
    whole = response_columns(before, after, targets, following, torch.rand(9, generator=generator).double())
    assert whole.shape == (150, 6)
    few = response_columns(before[70:], after[70:], targets, following[70:])
    torch.testing.assert_close(few, whole[70:, :4], rtol=1e-12, atol=1e-12)
