"""The fused step against the plain one: gradients of one batch, weights after fifty steps, and what it refuses."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary, Progress, State, available_dictionaries
from saetools.dictionaries.matryoshka import Matryoshka
from saetools.dictionaries.topk import TopK
from saetools.dictionaries.variational import Variational
from saetools.errors import ConfigError
from saetools.training.fused import FusedStep, why_not_fused
from saetools.training.optim import Adam
from saetools.training.selection import largest_of_slots
from saetools.training.step import PlainStep, _say_once, make_step, trained_parameters, weighted_sum

D = 16
PROGRESS = Progress(step=50, n_steps=100, n_tokens=6400, dead_after_tokens=1000)
FUSED = [
    pytest.param(dictionary, id=f"{cls.kind}-{number}")
    for cls in dict.fromkeys(available_dictionaries().values())
    for number, config in enumerate(cls.examples())
    if why_not_fused(dictionary := cls(config, D, 3)) is None
]
KINDS = {"topk", "mutual_choice", "matryoshka", "gradient", "variational", "feature_choice"}
IMPLS = ["reference", "torch", "numba"]


def rows(n: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 0.3


def stream_fields(x: Tensor) -> dict[str, Tensor]:
    """What a stream may carry beside x."""
    return {"grad": torch.sin(3 * x)}


def in_general_position(dictionary: Dictionary, dtype: torch.dtype = torch.float32) -> Dictionary:
    """A copy with no weight tied or zero."""
    dictionary = copy.deepcopy(dictionary)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        dictionary.total_variance.fill_(float(D))
    dictionary = dictionary.to(dtype)
    dictionary.constrain_()
    return dictionary


def half_dead(dictionary: Dictionary) -> State:
    state = dictionary.initial_state()
    state.tokens_since_fired_F[::2] = 2000
    return state


def fused(dictionary: Dictionary, impl: str = "auto", clip_norm: float = 1.0) -> FusedStep:
    return FusedStep(dictionary, Adam(trained_parameters(dictionary)), clip_norm, impl=impl)


def test_who_is_among_them() -> None:
    assert {p.values[0].kind for p in FUSED} == KINDS
    plans = [p.values[0].fused_plan() for p in FUSED]
    assert {plan.selection for plan in plans} == {"per_row", "global", "per_feature"}
    assert any(plan.multi_k for plan in plans) and any(plan.code_l2 for plan in plans)


@pytest.mark.parametrize("dictionary", FUSED)
def test_gradients_are_those_of_autograd(dictionary: Dictionary) -> None:
    dictionary = in_general_position(dictionary, torch.float64)
    x, target, state = rows().double(), rows(seed=8).double(), half_dead(dictionary)
    terms = dictionary.loss_terms(x, target, stream_fields(x), state, PROGRESS)
    weighted_sum(terms.losses, dictionary.loss_weights(PROGRESS)).backward()
    for name, gradient in fused(dictionary, "torch").gradients(x, target, stream_fields(x), state, PROGRESS).items():
        torch.testing.assert_close(gradient, dictionary.get_parameter(name).grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dictionary", FUSED)
@pytest.mark.parametrize("clip_norm", [0.01, 1e9])
def test_one_step_is_the_plain_one(dictionary: Dictionary, impl: str, clip_norm: float) -> None:
    """Compared by moments: the first update of Adam is little more than a sign."""
    plain, fast = in_general_position(dictionary), in_general_position(dictionary)
    x, target, state = rows(), rows(seed=8), half_dead(dictionary)
    slow_step = PlainStep(plain, Adam(trained_parameters(plain)), clip_norm)
    fast_step = fused(fast, impl, clip_norm)
    expected = slow_step(x, target, stream_fields(x), state, PROGRESS, 1e-3)
    got = fast_step(x, target, stream_fields(x), state, PROGRESS, 1e-3)
    assert set(got.losses) == set(expected.losses)
    for name in ("loss", "l0", "n_dead", "grad_norm"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-7, check_dtype=False)
    for name, loss in expected.losses.items():
        torch.testing.assert_close(got.losses[name], loss, rtol=1e-5, atol=1e-7)
    for name, tensor in expected.state.tensors().items():
        torch.testing.assert_close(got.state.tensors()[name], tensor)
    for name, moment in slow_step.optimizer.tensors().items():
        torch.testing.assert_close(fast_step.optimizer.tensors()[name], moment, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_fifty_steps_are_the_plain_ones(impl: str) -> None:
    start = TopK(TopK.configure(n_features=64, k=4), D, 0)
    start.total_variance.fill_(float(D))
    with torch.no_grad():
        start.b_enc_F[:16] -= 5  # these do not fire, and AuxK is at work once they are dead
    ends = []
    for make in (lambda d: PlainStep(d, Adam(trained_parameters(d)), 0.1), lambda d: fused(d, impl, 0.1)):
        dictionary = copy.deepcopy(start)
        step, state = make(dictionary), dictionary.initial_state()
        for number in range(50):
            x = rows(128, seed=number)
            progress = replace(PROGRESS, step=number, dead_after_tokens=640)
            result = step(x, x, {}, state, progress, 1e-3)
            state = result.state
        ends.append((dictionary, state, result))
    (plain, plain_state, plain_result), (fast, fast_state, fast_result) = ends
    assert plain_result.losses["auxk"] > 0
    torch.testing.assert_close(fast_result.loss, plain_result.loss, rtol=1e-4, atol=0)
    for name, parameter in plain.named_parameters():
        moved = (parameter - start.get_parameter(name)).norm()
        assert (fast.get_parameter(name) - parameter).norm() < 2e-3 * moved, name
    assert (fast_state.tokens_since_fired_F != plain_state.tokens_since_fired_F).sum() <= 1


def test_two_runs_are_bit_identical() -> None:
    ends = []
    for _ in range(2):
        dictionary = in_general_position(FUSED[0].values[0])
        step, state = fused(dictionary), half_dead(dictionary)
        for number in range(5):
            state = step(rows(seed=number), rows(seed=number), {}, state, PROGRESS, 1e-3).state
        ends.append(dictionary)
    assert all(torch.equal(a, b) for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_what_is_not_finite_is_not_applied(bad: float, impl: str) -> None:
    dictionary = in_general_position(FUSED[0].values[0])
    step, state = fused(dictionary, impl), half_dead(dictionary)
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    x = rows()
    x[3, 2] = bad
    result = step(x, x, {}, state, PROGRESS, 1e-2)
    assert not result.applied and result.state is state and step.optimizer.n_steps == 0
    assert all(not value.any() for value in step.optimizer.tensors().values())
    assert all(torch.equal(value, before[name]) for name, value in dictionary.state_dict().items())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_loss_that_overflows_is_not_applied(impl: str) -> None:
    """Where the gradients do not: what they are divided by keeps them small."""
    dictionary = in_general_position(FUSED[0].values[0])
    dictionary.total_variance.fill_(1e30)
    step, state = fused(dictionary, impl), dictionary.initial_state()
    x = torch.zeros(64, D)
    x[3, 2] = 1e20
    assert all(g.isfinite().all() for g in step.gradients(x, x, {}, state, PROGRESS).values())
    result = step(x, x, {}, state, PROGRESS, 1e-2)
    assert result.loss.isinf() and not result.applied and step.optimizer.n_steps == 0


def test_who_gets_the_fused_step(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    topk = TopK(TopK.configure(n_features=24, k=3), D)
    optimizer = Adam(trained_parameters(topk))
    assert isinstance(make_step(topk, optimizer, 1.0, "auto"), FusedStep)
    assert isinstance(make_step(topk, optimizer, 1.0, "fused"), FusedStep)
    assert isinstance(make_step(topk, optimizer, 1.0, "plain"), PlainStep)
    dense = Variational(Variational.configure(n_features=24, k=3, sample="none", beta=0.1), D)
    _say_once.cache_clear()  # another test may have been told
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert isinstance(make_step(dense, optimizer, 1.0, "auto"), PlainStep)
    assert caplog.text.count("does not cover kl") == 1
    with pytest.raises(ConfigError, match="does not cover kl"):
        make_step(dense, optimizer, 1.0, "fused")
    weights = topk.loss_weights(PROGRESS)
    monkeypatch.setattr(topk, "loss_weights", lambda now: weights | {"late": float(now.step > 99)})
    assert why_not_fused(topk) == "the fused step of 'topk' does not cover late", "whenever in the run it has a weight"


@pytest.mark.parametrize("n_groups", [256, 257])
def test_more_groups_than_a_byte_counts(n_groups: int) -> None:
    """The 257th group had been taken for the first, without a word."""
    settings = {"n_features": n_groups, "k": 4, "group_fractions": (1 / n_groups,) * n_groups, "aux_weight": 0}
    nested = in_general_position(Matryoshka(Matryoshka.configure(**settings), D, 0))
    step = make_step(nested, Adam(trained_parameters(nested)), 1.0, "auto")
    assert isinstance(step, FusedStep if n_groups == 256 else PlainStep)
    x_ND, state = rows(), nested.initial_state()
    expected = nested.loss_terms(x_ND, x_ND, {}, state, PROGRESS).losses["nested_reconstruction"].detach()
    torch.testing.assert_close(step(x_ND, x_ND, {}, state, PROGRESS, 1e-3).loss, expected, rtol=1e-5, atol=0)


def test_the_lowest_features_win_among_equal_slots() -> None:
    values = torch.tensor([[2.0, 5.0, 2.0, 2.0], [1.0, 0.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
    indices = torch.tensor([[9, 4, 3, 7], [2, 0, 0, 0], [1, 2, 3, 4]], dtype=torch.int32)
    assert largest_of_slots(values, indices, 2).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
        [True, True, False, False],
    ]
    assert largest_of_slots(values, indices, 4).all()
