"""Mutual choice: what the contract suite cannot know of it."""

from typing import Any

import pytest
import torch

from saetools.dictionaries.base import Dictionary, Progress, make_dictionary
from saetools.dictionaries.mutual_choice import MutualChoice
from saetools.dictionaries.topk import TopK
from saetools.functional.selection import batch_topk_mask
from saetools.functional.statistics import l0_N


def terms_of(dictionary: Dictionary, x: torch.Tensor):
    return dictionary.loss_terms(x, x, {}, dictionary.initial_state(), Progress(0, 10, 1000, 1000))


def test_on_one_row_it_is_topk(planted: Any) -> None:
    x = planted.rows(1, seed=1)  # of five atoms
    mutual, topk = (make_dictionary(cls.configure(n_features=48, k=3), planted.D) for cls in (MutualChoice, TopK))
    ours, theirs = terms_of(mutual, x), terms_of(topk, x)
    assert torch.equal(ours.code.to_dense(), theirs.code.to_dense())
    torch.testing.assert_close(ours.losses["reconstruction"], theirs.losses["reconstruction"])


def test_the_batch_shares_its_budget(planted: Any) -> None:
    dictionary = make_dictionary(MutualChoice.configure(n_features=48, k=3), planted.D)
    x = planted.rows(100, seed=0) * torch.linspace(0.1, 2, 100)[:, None]
    l0 = l0_N(terms_of(dictionary, x).code)
    assert l0.sum() == 300 and l0[:20].sum() < l0[-20:].sum()


@pytest.mark.parametrize("n_kept", [0, 1, 7, 20, 63])
def test_ties_go_to_the_first(n_kept: int) -> None:
    scores = torch.randint(-3, 4, (9, 7), generator=torch.Generator().manual_seed(n_kept)).float()
    order = scores.flatten().argsort(descending=True, stable=True)[:n_kept]
    expected = torch.zeros(63, dtype=torch.bool).scatter(0, order, True).view(9, 7) & (scores > 0)
    assert torch.equal(batch_topk_mask(scores, n_kept), expected)


def test_learnt_threshold_keeps_the_training_l0(planted: Any) -> None:
    dictionary = make_dictionary(MutualChoice.configure(n_features=48, k=3), planted.D)
    state, terms = planted.train(dictionary)
    assert dictionary.threshold.item() == pytest.approx(state.threshold().item())
    assert planted.recovered(dictionary) >= 0.75
    heldout = l0_N(dictionary.encode(planted.rows(4000, seed=-1))).double().mean().item()
    assert heldout == pytest.approx(l0_N(terms.code).double().mean().item(), rel=0.05)


def test_a_batch_without_anything_positive_leaves_the_threshold_alone() -> None:
    dictionary = make_dictionary(MutualChoice.configure(n_features=8, k=2), 4)
    with torch.no_grad():
        dictionary.b_enc_F.fill_(-100.0)
    terms = terms_of(dictionary, torch.zeros(5, 4))
    assert l0_N(terms.code).sum() == 0 and terms.new_state.threshold() == 0
    known = dictionary.initial_state().observe(torch.tensor(2.0))
    assert known.observe(torch.tensor(0.0)).tensors() == known.tensors(), "nor does the mean become shorter"


def test_the_threshold_follows_weights_that_change() -> None:
    """In a short run codes shrink by some per cent within the last batches: a long mean fires on a third too few."""
    state = make_dictionary(MutualChoice.configure(n_features=8, k=1), 4).initial_state()
    for value in torch.linspace(2.0, 1.5, 200).tolist() + [1.5] * 30:
        state = state.observe(torch.tensor(value))
    assert state.threshold().item() == pytest.approx(1.5, rel=0.01)
