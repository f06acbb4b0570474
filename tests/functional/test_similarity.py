"""Similarities of matrices whose relation is known."""

import math

import pytest
import torch

from saetools.functional.similarity import jaccard, linear_cka, linear_r2, relative_similarity, svcca


def rotation(d, seed=0):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))[0]


@pytest.fixture
def x():
    return torch.randn(500, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9)


def test_rotations_shifts_and_scales_are_not_seen(x):
    y = 3 * x @ rotation(8) + 5
    assert linear_cka(x, y) == pytest.approx(1)
    assert svcca(x, y) == pytest.approx(1)
    assert linear_r2(x, y) == pytest.approx(1)
    assert relative_similarity(x, 3 * x @ rotation(8), torch.arange(50)) == pytest.approx(1)


def test_independent_rows_are_unlike(x):
    y = torch.randn(500, 6, generator=torch.Generator().manual_seed(2))
    assert linear_cka(x, y) < 0.05
    assert linear_r2(x, y) == pytest.approx(8 / 499, abs=0.02)
    assert svcca(x, y) < 0.2
    assert abs(relative_similarity(x, y, torch.arange(50))) < 0.1


def test_as_many_dimensions_as_tokens_explain_anything(x):
    y = torch.randn(500, 6, generator=torch.Generator().manual_seed(2))
    assert math.isnan(linear_r2(x[:9], y[:9])), "eight dimensions, and nine centred tokens have no more"
    assert linear_r2(x[:10], y[:10]) < 1
    assert math.isnan(svcca(x[:7], y[:7])) and svcca(x[:7], y[:7], n_components=3) < 1


def test_cka_by_gram_matrices(x):
    y = x[:, :3] ** 2
    h = torch.eye(500).double() - 1 / 500
    gram_x, gram_y = (h @ (v.double() @ v.double().T) @ h for v in (x, y))
    expected = (gram_x * gram_y).sum() / (gram_x.square().sum() * gram_y.square().sum()).sqrt()
    assert linear_cka(x, y) == pytest.approx(float(expected), rel=1e-9)


def test_half_explained():
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1))
    assert linear_r2(x, x + noise) == pytest.approx(0.5, abs=0.03)
    assert svcca(x, torch.cat([x[:, :2], noise[:, :2]], 1)) == pytest.approx(0.5, abs=0.05)
    assert (
        svcca(x * 5 ** torch.arange(4), torch.cat([x[:, 3:], noise[:, :1] / 5], 1), 1) > 0.99
    )  # of the greatest alone


def test_a_dead_direction_does_not_count(x):
    assert svcca(torch.cat([x, torch.zeros(500, 3)], 1), x) == pytest.approx(1)


def test_jaccard():
    assert jaccard({(0, 1), (0, 2)}, {(0, 2), (3, 4)}) == pytest.approx(1 / 3)
    assert math.isnan(jaccard(set(), set()))
