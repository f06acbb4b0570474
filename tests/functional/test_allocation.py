"""Shares, rounding and column selection."""

import numpy as np
import pytest
import torch

from saetools.functional.allocation import capped_to_sum, random_rounding, zipf_shares
from saetools.functional.selection import column_topk_mask


def test_shares_of_a_zipf_law_are_the_law() -> None:
    rank = np.arange(1, 201)
    density = (rank + 3.0) ** -1.2
    density *= 5 / density.sum()
    order = np.random.default_rng(0).permutation(200)
    shares = zipf_shares(torch.from_numpy(density[order]), 5, 10**6).numpy()
    np.testing.assert_allclose(shares, density[order], rtol=1e-3)
    assert shares.sum() == pytest.approx(5)


def test_the_tail_gets_what_the_law_says() -> None:
    """Features that hardly fire are not fitted, but receive the share of their rank."""
    density = (np.arange(1, 201) + 3.0) ** -1.0 / 10
    density[150:] = 1e-9
    shares = zipf_shares(torch.from_numpy(density), 4, 10**5).numpy()
    assert shares.min() > 1e-4 and shares.sum() == pytest.approx(4) and (np.diff(shares) <= 0).all()


def test_without_a_law_shares_are_equal() -> None:
    assert zipf_shares(torch.zeros(8).double(), 2, 1000).tolist() == [0.25] * 8


def test_shares_of_densities_that_fall_exponentially() -> None:
    density_F = 0.2 * torch.exp(-torch.arange(1, 1001, dtype=torch.float64) / 50)
    shares_F = zipf_shares(density_F, 8.0, 10**6)
    assert shares_F.isfinite().all() and float(shares_F.sum()) == pytest.approx(8)
    assert (shares_F.diff() <= 0).all() and shares_F[0] > 100 * shares_F[500]


def test_cap() -> None:
    shares = capped_to_sum(np.array([100.0, 10.0, 1.0, 1.0]), 3.0)
    assert shares[:2].tolist() == [1.0, 1.0] and shares.sum() == pytest.approx(3)
    assert capped_to_sum(np.ones(4), 4.0).tolist() == [1.0] * 4


def test_rounding_is_right_on_average() -> None:
    expected = torch.tensor([0.0, 0.25, 3.0, 7.9], dtype=torch.float64)
    draws = torch.stack([random_rounding(expected, torch.Generator().manual_seed(i)) for i in range(4000)]).double()
    torch.testing.assert_close(draws.mean(0), expected, atol=0.03, rtol=0)
    assert (draws - expected).abs().max() < 1


def test_column_topk() -> None:
    scores = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    budget = torch.tensor([0, 1, 2, 3, 4, 7, 8, 20, 31, 32, 49, 50])
    expected = torch.zeros_like(scores, dtype=torch.bool)
    for column, most in enumerate(budget.tolist()):
        best = scores[:, column].argsort(descending=True)[:most]
        expected[best, column] = scores[best, column] > 0
    assert torch.equal(column_topk_mask(scores, budget), expected)
    assert column_topk_mask(scores[:0], budget * 0).shape == (0, 12)
