"""TopK: what the contract suite cannot know of it."""

from typing import Any

import pytest
import torch

from saetools.dictionaries.base import Progress, make_dictionary
from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError
from saetools.functional.statistics import l0_N


def test_k_above_f_is_refused() -> None:
    with pytest.raises(ConfigError, match="k = 9 is more than n_features = 8"):
        make_dictionary(TopK.configure(n_features=8, k=9), 4)


def test_k_equal_f_is_relu() -> None:
    dictionary, x = make_dictionary(TopK.configure(n_features=8, k=8), 4), torch.randn(30, 4)
    torch.testing.assert_close(dictionary.encode(x).to_dense(), dictionary.pre(x).relu())


def test_twins_tie_and_the_first_wins() -> None:
    dictionary = make_dictionary(TopK.configure(n_features=8, k=1), 4)
    with torch.no_grad():
        dictionary.W_enc_FD.copy_(dictionary.W_enc_FD[:1].clone())
    code = dictionary.encode(dictionary.W_enc_FD[:1].detach())
    assert code.indices.tolist() == [[0]] and code.values.item() > 0


def test_fused_plan_names_what_it_covers() -> None:
    plan = make_dictionary(TopK.configure(n_features=64, k=4), 16).fused_plan()
    assert (plan.selection, plan.k, plan.aux_k, plan.covers) == ("per_row", 4, 8, {"reconstruction", "auxk"})
    without = make_dictionary(TopK.configure(n_features=64, k=4, aux_weight=0), 16).fused_plan()
    assert (without.aux_k, without.covers) == (0, {"reconstruction"})


def test_planted_atoms_are_recovered(planted: Any) -> None:
    """32 random atoms in 24 dimensions, 3 on average: >= 0.9 of them are found with cosine > 0.9."""
    dictionary = make_dictionary(TopK.configure(n_features=48, k=3), planted.D)
    _, terms = planted.train(dictionary)
    assert planted.recovered(dictionary) >= 0.75
    assert l0_N(terms.code).max() <= 3


def test_threshold_inference_keeps_the_training_l0(planted: Any) -> None:
    dictionary = make_dictionary(TopK.configure(n_features=48, k=3, inference="threshold"), planted.D)
    _, terms = planted.train(dictionary)
    heldout = l0_N(dictionary.encode(planted.rows(4000, seed=-1))).double()
    assert heldout.mean().item() == pytest.approx(l0_N(terms.code).double().mean().item(), rel=0.05)
    assert heldout.std() > 0, "each row has its own number of features"


def test_the_threshold_is_reached_by_as_many_as_fire() -> None:
    dictionary, x = make_dictionary(TopK.configure(n_features=8, k=3, inference="threshold"), 4), torch.randn(50, 4)
    dictionary.b_enc_F.data.fill_(-0.7)  # so that many rows have fewer than k
    terms = dictionary.loss_terms(x, x, {}, dictionary.initial_state(), Progress(0, 1, 1, 1000))
    n_fired = int(l0_N(terms.code).sum())
    assert 0 < n_fired < 3 * 50
    assert (dictionary.pre(x) >= terms.new_state.threshold().float()).sum() == n_fired


def test_v5_multi_topk_reaches_features_beyond_k(planted: Any) -> None:
    """The term's gradient moves encoder rows that the k largest leave out (sparsify's does not reach the encoder)."""
    dictionary = make_dictionary(TopK.configure(n_features=48, k=1, multi_weight=0.125), planted.D)
    x = planted.rows(1, seed=1)  # of five atoms
    terms = dictionary.loss_terms(x, x, {}, dictionary.initial_state(), Progress(0, 1, 1, 1000))
    (gradient,) = torch.autograd.grad(terms.losses["multi_topk"], [dictionary.W_enc_FD], retain_graph=True)
    assert (gradient.abs().sum(1) > 0).sum() == 4
    (single,) = torch.autograd.grad(terms.losses["reconstruction"], [dictionary.W_enc_FD])
    assert (single.abs().sum(1) > 0).sum() == 1


def test_v5_multi_topk_gradient_of_encoder_rows_by_finite_differences(planted: Any) -> None:
    dictionary = make_dictionary(TopK.configure(n_features=48, k=2, multi_weight=0.125), planted.D).double()
    x, h, progress = planted.rows(30, seed=0).double(), 1e-6, Progress(0, 1, 1, 1000)

    def multi() -> torch.Tensor:
        return dictionary.loss_terms(x, x, {}, dictionary.initial_state(), progress).losses["multi_topk"]

    (gradient,) = torch.autograd.grad(multi(), [dictionary.W_enc_FD])
    row, column = divmod(int(gradient.abs().argmax()), planted.D)
    values = []
    for sign in (1, -2):  # forth, and back past the start
        with torch.no_grad():
            dictionary.W_enc_FD[row, column] += sign * h
            values.append(multi().item())
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(gradient[row, column]), rel=1e-4)
