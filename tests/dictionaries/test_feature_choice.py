"""Feature choice: what the contract suite cannot know of it."""

from typing import Any

import pytest
import torch

from saetools.dictionaries.base import Dictionary, Progress, Terms, make_dictionary
from saetools.dictionaries.feature_choice import FeatureChoice
from saetools.dictionaries.mutual_choice import MutualChoice
from saetools.errors import ConfigError
from saetools.functional.statistics import firing_counts_F, l0_N

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


@pytest.mark.parametrize("budgets", ["zipf", "uniform"])
def test_thresholds_keep_the_training_l0(budgets: str, planted: Any) -> None:
    config = FeatureChoice.configure(n_features=48, k=3, budgets=budgets, mutual_fraction=0.4)
    dictionary = make_dictionary(config, planted.D)
    state, terms = planted.train(dictionary, steps=600, lr=1e-2)
    assert state.share_F.sum().item() == pytest.approx(3)
    assert planted.recovered(dictionary) >= 0.9
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
