"""AUC from histograms against its definition over pairs; ranks."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from saetools.functional.ranking import auc_F, ranks


def test_by_all_pairs():
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(2, 9, 40), generator.integers(0, 7, 60)
    wins = np.mean((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative))
    histograms = [torch.from_numpy(np.bincount(values, minlength=9))[None] for values in (positive, negative)]
    assert float(auc_F(*histograms)) == pytest.approx(wins)


def test_extremes():
    low, high, none = torch.tensor([[4, 0]]), torch.tensor([[0, 9]]), torch.tensor([[0, 0]])
    assert float(auc_F(high, low)) == 1 and float(auc_F(low, high)) == 0 and float(auc_F(low, low)) == 0.5
    assert auc_F(low, none).isnan().all()


def test_ranks_of_equal_values_are_shared():
    values = np.random.default_rng(0).integers(0, 20, 100)
    np.testing.assert_array_equal(ranks(values), rankdata(values))
    assert ranks(np.zeros(0)).shape == (0,)
