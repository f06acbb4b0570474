"""Ablation of features that stand for one class alone, and of ones that stand for none."""

import numpy as np
import torch
from planted_classes import N_CLASSES, planted_subject
from small_hosts import by_name, scaled_copy

from saetools.evals.disentangling import Disentangling, _Coded
from saetools.evals.probes import encode_rows

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


def test_what_ablation_takes_from_scores_by_dense_algebra():
    dictionary = scaled_copy(N_CLASSES, 1.0)
    x, w = torch.randn(50, N_CLASSES), torch.randn(N_CLASSES, 3).double()
    coded = _Coded.of(dictionary, encode_rows(dictionary, x))
    features = torch.tensor([1, 4, N_CLASSES + 2])
    code = dictionary.encode(x).to_dense().detach()
    ablated = (x - code[:, features] @ dictionary.W_dec_FD.detach()[features]).double()
    expected = x.double() @ w - ablated @ w
    np.testing.assert_allclose(coded.taken(features, w.numpy()), expected.numpy(), atol=1e-6)
    assert not coded.taken(torch.zeros(0, dtype=torch.long), w.numpy()).any()
