"""Gradient: what the contract suite cannot know of it."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from saetools.activations.calibration import measure
from saetools.dictionaries.base import Dictionary, Progress, Terms, make_dictionary
from saetools.dictionaries.gradient import Gradient, warn_once
from saetools.dictionaries.topk import TopK
from saetools.errors import MismatchError
from saetools.training.fused import FusedStep
from saetools.training.optim import Adam
from saetools.training.step import trained_parameters

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
G = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) * 1e-3


def calibrated(scale: float = 1.0, **settings: Any) -> Dictionary:
    """A small dictionary for rows X with gradients scale * G."""
    dictionary = make_dictionary(Gradient.configure(n_features=20, k=3, **settings), 6)
    dictionary.calibrate_(measure(X, scale * G).model_copy(update={"b_dec_start": (0.0,) * 6}))
    return dictionary


def terms_of(dictionary: Dictionary, fields: dict[str, Tensor]) -> Terms:
    return dictionary.loss_terms(X, X, fields, dictionary.initial_state(), Progress(0, 10, 1000, 0))


def test_beta_zero_is_topk() -> None:
    ours = terms_of(make_dictionary(Gradient.configure(n_features=20, k=3, beta=0), 6), {"grad": G})
    theirs = terms_of(make_dictionary(TopK.configure(n_features=20, k=3), 6), {})
    assert torch.equal(ours.code.to_dense(), theirs.code.to_dense())
    assert torch.equal(ours.losses["reconstruction"], theirs.losses["reconstruction"])


@pytest.mark.parametrize(("score", "beta"), [("weighted", 2.0), ("product", 1.0)])
def test_scores_choose_and_activations_are_kept(score: str, beta: float) -> None:
    dictionary = calibrated(beta=beta, score=score)
    effects = (G / G.square().mean().sqrt() @ dictionary.directions().T).abs()
    active = dictionary.pre(X).relu()
    scores = active * (effects if score == "product" else 1 + beta * effects)
    expected = active * torch.zeros_like(active).scatter(1, scores.topk(3, dim=1).indices, 1)
    torch.testing.assert_close(terms_of(dictionary, {"grad": G}).code.to_dense(), expected)


@pytest.mark.parametrize("score", ["weighted", "product"])
def test_a_row_without_effect_has_one_code_by_every_road(score: str) -> None:
    """The gradient of a window's last token is 0: by the product no feature of it has a score."""
    dictionary, grad = calibrated(score=score), G.clone()
    grad[7] = 0
    step = FusedStep(dictionary, Adam(trained_parameters(dictionary)), 1.0)
    fused = step(X, X, {"grad": grad}, dictionary.initial_state(), Progress(0, 10, 1000, 1000), 0.0)
    codes = [dictionary.encode(X, {"grad": grad}).to_dense(), terms_of(dictionary, {"grad": grad}).code.to_dense()]
    for code in codes:
        torch.testing.assert_close(code, dictionary.encode_reference(X, {"grad": grad}))
        assert (code != 0).sum(1).double().mean() == fused.l0
    assert bool(codes[0][7].any()) == (score == "weighted")


def test_gradients_that_do_not_matter_are_not_looked_at() -> None:
    dictionary = make_dictionary(Gradient.configure(n_features=20, k=3, beta=0), 6)
    code = dictionary.encode(X, {"grad": torch.full_like(G, torch.inf)})
    assert torch.equal(code.to_dense(), dictionary.encode(X).to_dense())


def test_inference_with_and_without_gradients() -> None:
    dictionary = calibrated(beta=5.0)
    terms = terms_of(dictionary, {"grad": G})
    dictionary.absorb_(terms.new_state)
    torch.testing.assert_close(dictionary.encode(X, {"grad": G}).to_dense(), terms.code.to_dense())
    torch.testing.assert_close(dictionary(X, {"grad": G}), dictionary.decode(terms.code))
    plain = dictionary.encode(X).to_dense()
    assert not torch.equal(plain, terms.code.to_dense())
    topk = make_dictionary(TopK.configure(n_features=20, k=3), 6)
    topk.calibrate_(measure(X).model_copy(update={"b_dec_start": (0.0,) * 6}))
    assert torch.equal(plain, topk.encode(X).to_dense())


def test_the_size_of_gradients_does_not_matter() -> None:
    codes = [terms_of(calibrated(c), {"grad": G * c}).code for c in (1, 1e4)]
    assert torch.equal(codes[0].indices, codes[1].indices)


def test_rows_without_gradients_train_as_topk_and_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    dictionary = make_dictionary(Gradient.configure(n_features=20, k=3), 6)
    with caplog.at_level(logging.WARNING):
        terms = terms_of(dictionary, {})
        terms_of(dictionary, {})
    assert caplog.text.count("carry no field `grad`") == 1
    dictionary.absorb_(terms.new_state)
    assert dictionary.gradient_share == 0
    assert torch.equal(terms.code.to_dense(), dictionary.encode(X).to_dense())
    with_gradients = dictionary.loss_terms(X, X, {"grad": G}, terms.new_state, Progress(1, 10, 1000, 0))
    dictionary.absorb_(with_gradients.new_state)
    assert dictionary.gradient_share == 0.5


def test_gradients_of_another_shape_are_refused() -> None:
    with pytest.raises(MismatchError, match="field `grad`"):
        terms_of(make_dictionary(Gradient.configure(n_features=20, k=3), 6), {"grad": G[:, :3]})
