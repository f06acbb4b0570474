"""Kinds whose sparsity is bought by a penalty: a higher price gives fewer features; planted atoms are found."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from saetools.dictionaries.base import Progress, dictionary_class, make_dictionary
from saetools.dictionaries.gated import Gated
from saetools.dictionaries.jumprelu import JumpReLU
from saetools.dictionaries.p_anneal import PAnneal
from saetools.dictionaries.relu_l1 import ReluL1
from saetools.errors import DataError
from saetools.functional.statistics import l0_N

PRICES = {
    "relu_l1": ("l1_weight", 0.1, 0.4),
    "gated": ("l1_weight", 0.2, 0.8),
    "jumprelu": ("l0_weight", 0.01, 0.05),
    "p_anneal": ("l1_weight", 0.1, 0.4),
}


@pytest.mark.parametrize("kind", PRICES)
def test_price_and_recovery(kind: str, planted: Any) -> None:
    name, low, high = PRICES[kind]
    extra = {"bandwidth": 0.1, "first_threshold": 0.1} if kind == "jumprelu" else {}
    l0 = []
    for price in (low, high):
        config = dictionary_class(kind).configure(n_features=48, **{name: price}, **extra)
        dictionary = make_dictionary(config, planted.D)
        planted.train(dictionary, steps=400, lr=1e-2)
        l0.append(l0_N(dictionary.encode(planted.rows(1000, seed=-1))).double().mean().item())
    assert planted.recovered(dictionary) >= 0.75
    assert l0[1] < l0[0] < 24


@pytest.mark.parametrize(
    ("kind", "field", "loss"),
    [
        ("relu_l1", "l1_weight", "l1"),
        ("gated", "l1_weight", "l1"),
        ("jumprelu", "l0_weight", "l0"),
        ("p_anneal", "l1_weight", "sparsity"),
        ("variational", "beta", "kl"),
    ],
)
def test_the_penalty_grows_over_the_warmup(kind: str, field: str, loss: str) -> None:
    settings = {field: 0.5, "warmup_fraction": 0.1} | ({"k": 2} if kind == "variational" else {})
    dictionary = make_dictionary(dictionary_class(kind).configure(n_features=8, **settings), 4)
    weights = [dictionary.loss_weights(Progress(step, 100, 1000, 10))[loss] for step in (0, 4, 9, 50)]
    assert weights == pytest.approx([0.05, 0.25, 0.5, 0.5])


def test_jumprelu_thresholds_stay_non_negative_and_reach_the_gradient_from_below() -> None:
    dictionary = make_dictionary(JumpReLU.configure(n_features=2, bandwidth=0.5, first_threshold=0.5), 2)
    with torch.no_grad():
        dictionary.W_enc_FD.copy_(torch.eye(2))
        dictionary.W_dec_FD.copy_(torch.eye(2))
    torch.testing.assert_close(dictionary.threshold_F, torch.full((2,), 0.5 * 2**0.5))  # for rows of E||x||^2 = D
    x = dictionary.threshold_F.detach()[None] - 0.3  # the code is 0, yet a lower threshold would help
    terms = dictionary.loss_terms(x, x, {}, dictionary.initial_state(), Progress(0, 1, 1, 1000))
    assert l0_N(terms.code).sum() == 0
    (gradient,) = torch.autograd.grad(terms.losses["reconstruction"], [dictionary.threshold_F])
    assert (gradient > 0).all()
    with torch.no_grad():
        dictionary.threshold_F.fill_(-1.0)
    dictionary.constrain_()
    assert (dictionary.threshold_F == 0).all()


def test_gate_loss_does_not_move_the_decoder() -> None:
    dictionary, x = make_dictionary(Gated.configure(n_features=8), 4), torch.randn(20, 4)
    terms = dictionary.loss_terms(x, x, {}, dictionary.initial_state(), Progress(0, 1, 1, 1000))
    inputs = [dictionary.W_dec_FD, dictionary.W_enc_FD]
    inputs.append(dictionary.b_dec_D)
    decoder, encoder, bias = torch.autograd.grad(terms.losses["gate_reconstruction"], inputs, allow_unused=True)
    assert decoder is None and encoder.abs().max() > 0
    recon = dictionary.pre(x).relu() @ dictionary.W_dec_FD.detach() + dictionary.b_dec_D.detach()
    (expected,) = torch.autograd.grad((x - recon).square().sum(1).mean(), [dictionary.b_dec_D])
    torch.testing.assert_close(bias, expected)  # by the encoder alone


def test_gated_with_neutral_parameters_is_relu() -> None:
    gated, relu = (make_dictionary(cls.configure(n_features=8), 4) for cls in (Gated, ReluL1))
    x = torch.randn(20, 4)
    torch.testing.assert_close(gated.encode(x).to_dense(), relu.encode(x).to_dense())


def test_magnitudes_have_a_gain_and_a_bias_of_their_own() -> None:
    dictionary, x = make_dictionary(Gated.configure(n_features=8), 4), torch.randn(20, 4)
    for parameter in (dictionary.b_enc_F, dictionary.b_magnitude_F, dictionary.log_gain_F, dictionary.b_dec_D):
        parameter.data.normal_()
    product = (x - dictionary.b_dec_D) @ dictionary.W_enc_FD.T
    magnitude = (dictionary.log_gain_F.exp() * product + dictionary.b_magnitude_F).relu()
    torch.testing.assert_close(dictionary.encode(x).to_dense(), magnitude * (product + dictionary.b_enc_F > 0))


def test_p_falls_in_equal_steps() -> None:
    config = PAnneal.configure(n_features=8, p_end=0.2, n_updates=4, anneal_start=0.5)
    powers = [config.power(step, 100) for step in range(100)]
    assert powers[:50] == [1.0] * 50 and powers[-1] == pytest.approx(0.2)
    values = sorted(set(powers), reverse=True)
    assert values == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert [config.next_power(power) for power in values] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])


@pytest.mark.parametrize(
    ("skipped", "n_steps"),
    [
        pytest.param((), lambda step: 20, id="straight"),
        pytest.param(range(2, 20, 2), lambda step: 20, id="each step at which p changes is skipped"),
        pytest.param(range(4, 9), lambda step: 20, id="p changes twice while steps are skipped"),
        pytest.param((), lambda step: 20 if step < 10 else 40, id="the run is made longer, and p goes back"),
    ],
)
def test_the_penalty_goes_on_with_the_size_it_had(skipped: Sequence[int], n_steps: Callable[[int], int]) -> None:
    """Of a skipped step (its loss or gradient was not finite) the new state is dropped, but it counts."""
    dictionary = make_dictionary(PAnneal.configure(n_features=8, anneal_start=0.0, n_updates=9), 4)
    state, sizes, powers = dictionary.initial_state(), [], []
    for step in range(20):  # of 20, p changes at every other
        x = 0.05 * torch.randn(200, 4, generator=torch.Generator().manual_seed(step))  # code^p grows twelvefold
        terms = dictionary.loss_terms(x, x, {}, state, Progress(step, n_steps(step), 4000, 1000))
        state = state if step in skipped else terms.new_state
        sizes.append(terms.losses["sparsity"].item())
        powers.append(float(state.power))
    assert max(sizes) < 1.3 * min(sizes)
    assert state.coefficient.item() != 1
    assert powers[-1] == dictionary.config.power(19, n_steps(19)) < 1


def test_a_state_of_another_version_is_refused() -> None:
    state = make_dictionary(PAnneal.configure(n_features=8), 4).initial_state()
    old = {name: tensor for name, tensor in state.tensors().items() if name != "power"}
    with pytest.raises(DataError, match=r"AnnealState needs .*'power'.* begin the run again"):
        state.with_tensors(old)
