"""One step, against its parts written out; losses that are not finite change nothing."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from saetools.dictionaries.base import Progress, Terms, available_dictionaries
from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError
from saetools.functional.constraints import project_tangent_, unit_rows_
from saetools.training.optim import Adam
from saetools.training.step import PlainStep, clip_, make_step, trained_parameters, weighted_sum

PROGRESS = Progress(step=0, n_steps=10, n_tokens=1000, dead_after_tokens=50)


def dictionary_and_rows() -> tuple[TopK, Tensor]:
    torch.manual_seed(0)
    return TopK(TopK.configure(n_features=24, k=3, aux_weight=0.5), 8), torch.randn(40, 8)


def test_a_step_is_its_parts_in_order() -> None:
    dictionary, x_ND = dictionary_and_rows()
    dictionary.b_enc_F.data[20:] = -10  # silent in this batch
    by_hand = copy.deepcopy(dictionary)
    state = dictionary.initial_state()
    for first, since in ((0, 60), (6, 49), (12, 10)):  # dead; not yet; after these 40 rows, to the token
        state.tokens_since_fired_F[first:] = since
    step = make_step(dictionary, Adam(trained_parameters(dictionary)), 0.01, "plain")
    for p in dictionary.parameters():
        p.grad = torch.ones_like(p)  # which somebody left, and which do not count
    result = step(x_ND, x_ND, {}, state, PROGRESS, 1e-2)

    terms = by_hand.loss_terms(x_ND, x_ND, {}, state, PROGRESS)
    loss = 1.0 * terms.losses["reconstruction"] + 0.5 * terms.losses["auxk"]
    names, parameters = zip(*by_hand.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    assert terms.losses["auxk"] > 0
    project_tangent_(gradients["W_dec_FD"], by_hand.W_dec_FD)
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    assert norm > 0.01, "the clip must bite"
    with torch.no_grad():
        for name, p in zip(names, parameters, strict=True):
            g = gradients[name] * 0.01 / norm
            p -= 1e-2 * g / (g.abs() + 6.25e-10)  # Adam's first step
        unit_rows_(by_hand.W_dec_FD)

    for name, p in by_hand.named_parameters():
        torch.testing.assert_close(dictionary.get_parameter(name), p, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.grad_norm, norm)
    torch.testing.assert_close(result.loss, loss.detach())
    assert result.l0 <= 3
    assert result.applied
    assert torch.equal(result.state.tokens_since_fired_F, terms.new_state.tokens_since_fired_F)
    assert int(result.n_dead) == int((terms.new_state.tokens_since_fired_F >= 50).sum())
    assert all(p.grad is None for p in dictionary.parameters())


@pytest.mark.parametrize("bad", [torch.inf, torch.nan, 1e30])
def test_what_is_not_finite_is_not_applied(bad: float) -> None:
    dictionary, x_ND = dictionary_and_rows()
    optimizer = Adam(trained_parameters(dictionary))
    step = make_step(dictionary, optimizer, 1.0, "plain")
    state = dictionary.initial_state()
    weights = {name: value.clone() for name, value in dictionary.state_dict().items()}
    target_ND = x_ND.clone()
    target_ND[3, 2] = bad
    result = step(x_ND, target_ND, {}, state, PROGRESS, 1e-2)
    assert not result.applied
    assert result.state is state
    assert optimizer.n_steps == 0
    assert all(not value.any() for value in optimizer.tensors().values())
    assert all(torch.equal(value, weights[name]) for name, value in dictionary.state_dict().items())


def test_a_gradient_that_is_not_finite_while_the_loss_is(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary, x_ND = dictionary_and_rows()
    plain = dictionary.loss_terms

    def infinite_slope(*args: Any) -> Terms:
        terms = plain(*args)
        cusp = (dictionary.b_enc_F * 0).sum().sqrt()  # value 0, slope inf * 0 = nan
        return replace(terms, losses={**terms.losses, "reconstruction": terms.losses["reconstruction"] + cusp})

    monkeypatch.setattr(dictionary, "loss_terms", infinite_slope)
    before = dictionary.b_enc_F.detach().clone()
    step = PlainStep(dictionary, Adam(trained_parameters(dictionary)), 1.0)
    result = step(x_ND, x_ND, {}, dictionary.initial_state(), PROGRESS, 1e-2)
    assert torch.isfinite(result.loss)
    assert not result.applied
    assert torch.equal(dictionary.b_enc_F, before)


def test_clipping_is_exact_within_the_bound() -> None:
    gradients = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    clip_(gradients, torch.tensor(5.0), 7.0)
    assert gradients["a"].tolist() == [3.0, 0.0]
    clip_(gradients, torch.tensor(5.0), 1.0)
    assert gradients["b"].item() == pytest.approx(0.8)
    for norm in (0.0, 5.0):
        clip_(gradients, torch.tensor(norm), torch.inf)
    assert gradients["b"].item() == pytest.approx(0.8)


@pytest.mark.parametrize("losses", [{"a": torch.tensor(1.0)}, {"a": torch.tensor(1.0), "c": torch.tensor(1.0)}])
def test_a_loss_without_weight_or_a_weight_without_loss_is_our_error(losses: Mapping[str, Tensor]) -> None:
    with pytest.raises(AssertionError, match="differ"):
        weighted_sum(losses, {"a": 1.0, "b": 2.0})


def test_a_loss_of_weight_zero_is_left_out_whatever_its_value() -> None:
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(torch.nan)}
    assert weighted_sum(losses, {"a": 3.0, "b": 0.0}).item() == 6.0


def test_a_fused_step_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary, _ = dictionary_and_rows()
    monkeypatch.setattr(dictionary, "fused_plan", lambda: None)
    with pytest.raises(ConfigError, match=r"training\.impl is fused, but"):
        make_step(dictionary, Adam(trained_parameters(dictionary)), 1.0, "fused")
    assert isinstance(make_step(dictionary, Adam(trained_parameters(dictionary)), 1.0, "auto"), PlainStep)


@pytest.mark.parametrize("kind", [k for k, c in available_dictionaries().items() if c.trained_by == "gradient"])
def test_products_in_bf16_stay_near_float32(kind: str) -> None:
    """The master weights and their moments are float32 in either; the gradient is nearly that of float32."""
    results, moments = [], []
    for compute in ("fp32", "bf16"):
        cls = available_dictionaries()[kind]
        dictionary = cls(cls.examples()[0], 16, 0)
        dictionary.total_variance.fill_(16.0)
        optimizer = Adam(trained_parameters(dictionary))
        step = make_step(dictionary, optimizer, 1e9, "plain", compute)
        x_ND = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
        results.append(step(x_ND, x_ND, {}, dictionary.initial_state(), PROGRESS, 1e-3))
        moments.append(torch.cat([m.flatten() for m in optimizer.first.values()]))
        assert {t.dtype for t in (*dictionary.parameters(), *optimizer.tensors().values())} == {torch.float32}
    assert results[1].applied and results[1].loss.dtype == torch.float32
    torch.testing.assert_close(results[1].loss, results[0].loss, rtol=0.05, atol=0)
    moved = (moments[1] - moments[0]).norm()
    assert moved < 0.3 * moments[0].norm() and (moved > 0) == (kind != "matching_pursuit")  # a kernel without autocast


def test_compute_chooses_the_products_of_a_fused_step() -> None:
    dictionary, _ = dictionary_and_rows()
    made = {c: make_step(dictionary, Adam(trained_parameters(dictionary)), 1.0, "auto", c) for c in ("fp32", "bf16")}
    assert made["fp32"].provider.endswith("-fp32") and made["bf16"].provider.endswith("-bf16-screen")
    assert make_step(dictionary, Adam(trained_parameters(dictionary)), 1.0, "plain", "bf16").provider == "plain-bf16"
