"""Feature choice: what the contract suite cannot know of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from saetools.dictionaries.base import Dictionary, Progress, Terms, make_dictionary
from saetools.dictionaries.feature_choice import START, FeatureChoice, moved_thresholds
from saetools.dictionaries.mutual_choice import MutualChoice
from saetools.errors import ConfigError
from saetools.functional.allocation import zipf_shares
from saetools.functional.statistics import firing_counts_F, l0_N
from saetools.records import Calibration

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def terms_of(dictionary: Dictionary, step: int) -> Terms:
    return dictionary.loss_terms(X, X, {}, dictionary.initial_state(), Progress(step, 100, 6400, 1000))


def test_full_budgets_are_relu() -> None:
    dictionary = make_dictionary(
        FeatureChoice.configure(n_features=12, k=12, budgets="uniform", mutual_fraction=0.0), 6
    )
    torch.testing.assert_close(terms_of(dictionary, 0).code.to_dense(), dictionary.pre(X).relu())


def test_zipf_needs_densities_to_fit() -> None:
    with pytest.raises(ConfigError, match="mutual_fraction is 0, but budgets: zipf"):
        make_dictionary(FeatureChoice.configure(n_features=12, k=3, mutual_fraction=0), 6)


def test_phase_1_is_mutual_choice() -> None:
    ours = terms_of(make_dictionary(FeatureChoice.configure(n_features=12, k=3), 6), 0)
    theirs = terms_of(make_dictionary(MutualChoice.configure(n_features=12, k=3), 6), 0)
    assert torch.equal(ours.code.to_dense(), theirs.code.to_dense())


def test_each_feature_takes_its_share() -> None:
    dictionary = make_dictionary(FeatureChoice.configure(n_features=12, k=3, budgets="uniform"), 6)
    terms = terms_of(dictionary, 50)
    assert (firing_counts_F(terms.code) == 16).all()
    uneven = make_dictionary(FeatureChoice.configure(n_features=13, k=3, budgets="uniform"), 6)
    counts = [firing_counts_F(terms_of(uneven, step).code) for step in (50, 51)]
    assert set(torch.cat(counts).tolist()) == {14, 15} and not counts[0].equal(counts[1]), "rounded anew at each step"


def test_shares_are_fitted_to_densities_over_a_hundred_batches() -> None:
    dictionary = make_dictionary(FeatureChoice.configure(n_features=40, k=3), 6)
    after = terms_of(dictionary, 0)
    torch.testing.assert_close(after.new_state.density(), firing_counts_F(after.code).double() / 64)
    density_F = 0.3 * torch.arange(1, 41).double() ** -1.1  # of 64 tokens most would be too few to fit
    state = replace(dictionary.initial_state(), density_sum_F=density_F, density_weight=torch.tensor(1.0).double())
    found = dictionary.loss_terms(X, X, {}, state, Progress(99, 1000, 64_000, 1000)).new_state.share_F
    torch.testing.assert_close(found, zipf_shares(density_F, 3, n_effective=6400))
    density_F[15:] = 0.01  # 6 firings in the ten batches that there were: too few to fit
    young = replace(state, density_sum_F=density_F / 10, density_weight=torch.tensor(0.1).double())
    found = dictionary.loss_terms(X, X, {}, young, Progress(99, 1000, 64_000, 1000)).new_state.share_F
    torch.testing.assert_close(found, zipf_shares(density_F, 3, n_effective=640))


def test_thresholds_begin_with_that_of_phase_1_and_move_by_the_rule() -> None:
    dictionary = make_dictionary(FeatureChoice.configure(n_features=4, k=1), 6)
    dictionary.total_variance.fill_(4.0)
    state = dictionary.initial_state()
    dictionary.absorb_(state.observe(torch.tensor(0.7)))
    torch.testing.assert_close(dictionary.threshold_F, torch.full((4,), 0.7))
    begun = dictionary._with_shares(state, Progress(50, 100, 6400, 1000), mutual=False)
    torch.testing.assert_close(begun.threshold_F, torch.full((4,), 2 * START).double())
    share_F, n_above_F = torch.tensor([0.25, 0.25, 0.001, 0.001]).double(), torch.tensor([8, 64, 1, 20])
    m_F = 64 * share_F
    moved = moved_thresholds(replace(begun, share_F=share_F), n_above_F, 64).threshold_F
    expected = 0.1 * (m_F.clamp_max(1) * (n_above_F / m_F - 1)).clamp_max(10)
    torch.testing.assert_close((moved / begun.threshold_F).log(), expected)


def test_a_threshold_comes_back_however_long_its_feature_was_dead() -> None:
    dictionary = make_dictionary(FeatureChoice.configure(n_features=4, k=1), 6)
    state = replace(
        dictionary.initial_state(), share_F=torch.full((4,), 0.25).double(), threshold_F=torch.ones(4).double()
    )
    for _ in range(9000):
        state = moved_thresholds(state, torch.zeros(4, dtype=torch.int64), 64)
    assert (state.threshold_F.float() > 0).all()
    for _ in range(900):
        state = moved_thresholds(state, torch.full((4,), 32), 64)
    assert (state.threshold_F > 1).all()


def test_a_run_made_longer_goes_back_to_phase_1() -> None:
    """The thresholds of the shorter run's phase 2 stood for inference, and as the start of the new phase 2."""
    dictionary = make_dictionary(FeatureChoice.configure(n_features=12, k=3, budgets="uniform"), 6)
    dictionary.calibrate_(
        Calibration(scale=1.0, total_variance=6.0, median_norm=1.0, b_dec_start=(0.0,) * 6, n_rows=64)
    )
    state = dictionary.initial_state()
    for step, n_steps in ((0, 4), (1, 4), (2, 4), (3, 4), (4, 100)):
        state = dictionary.loss_terms(X, X, {}, state, Progress(step, n_steps, 64 * n_steps, 1000)).new_state
    dictionary.absorb_(state)
    torch.testing.assert_close(dictionary.threshold_F, state.threshold().float().expand(12))
    before, _ = dictionary.fused_batch(
        X, {}, replace(state, threshold_F=torch.ones(12).double()), Progress(5, 100, 6400, 9)
    )
    assert not before.threshold_F.any(), "the fused step too"


@pytest.mark.parametrize("budgets", ["zipf", "uniform"])
def test_thresholds_keep_the_training_l0(budgets: str, planted: Any) -> None:
    config = FeatureChoice.configure(n_features=48, k=3, budgets=budgets, mutual_fraction=0.4)
    dictionary = make_dictionary(config, planted.D)
    state, terms = planted.train(dictionary, steps=600, lr=1e-2)
    assert state.share_F.sum().item() == pytest.approx(3)
    assert planted.recovered(dictionary) >= 0.75
    heldout = l0_N(dictionary.encode(planted.rows(8000, seed=-1))).double().mean().item()
    assert heldout == pytest.approx(l0_N(terms.code).double().mean().item(), rel=0.05)


def test_under_used_features_are_helped() -> None:
    """A feature that fires, but less than half its share, is in AuxZipf and would not be in AuxK."""
    dictionary = make_dictionary(FeatureChoice.configure(n_features=12, k=3, budgets="uniform"), 6)
    with torch.no_grad():
        dictionary.b_enc_F[0] = -1.5
    state = dictionary.initial_state()
    for _ in range(3):
        terms = dictionary.loss_terms(X, X, {}, state, Progress(50, 100, 6400, 10**9))
        state = terms.new_state
    assert state.tokens_since_fired_F[0] == 0 and state.density()[0] < 0.125
    (gradient,) = torch.autograd.grad(terms.losses["aux_zipf"], [dictionary.b_enc_F])
    assert gradient[0] != 0 and gradient[1:].abs().max() == 0
