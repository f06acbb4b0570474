"""Ablation of features that stand for one class alone, and of ones that stand for none."""

import numpy as np
import pytest
import torch
from planted_classes import N_CLASSES, planted_subject
from small_hosts import by_name, scaled_copy

from saetools.evals.disentangling import Disentangling, _Coded

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


def test_taking_features_out_by_dense_algebra():
    dictionary = scaled_copy(N_CLASSES, 1.0)
    x = torch.randn(50, N_CLASSES)
    coded = _Coded.of(dictionary, x)
    features = torch.tensor([1, 4, N_CLASSES + 2])
    code = dictionary.encode(x).to_dense().detach()
    expected = x - code[:, features] @ dictionary.W_dec_FD.detach()[features]
    np.testing.assert_allclose(coded.without(features), expected.double().numpy(), atol=1e-6)
    assert coded.without(torch.zeros(0, dtype=torch.long)) == pytest.approx(x.double().numpy())
