"""Streamed moments against brute force: as long as a real pass, and where power sums would lose their digits."""

import numpy as np
import pytest

from saetools.features.firings import Firings
from saetools.features.moments import Moments


def firings(code_NF: np.ndarray) -> Firings:
    """The firings of dense codes, without windows."""
    rows, features = np.nonzero(code_NF)
    return Firings.of((rows, features, code_NF[rows, features]), np.zeros((len(code_NF), 2), np.int64), None)


def check(moments: Moments, code_NF: np.ndarray) -> None:
    """Every statistic within 1e-6 of what the codes give at once."""
    skewness, kurtosis = moments.skewness_kurtosis_F()
    np.testing.assert_allclose(moments.density_F(), (code_NF != 0).mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.mean_square_F(), (code_NF.astype(np.float64) ** 2).mean(0), rtol=1e-6)
    for feature in range(code_NF.shape[1]):
        values = code_NF[:, feature][code_NF[:, feature] != 0].astype(np.float64)
        centred = values - values.mean()
        second, third, fourth = ((centred**power).mean() for power in (2, 3, 4))
        assert moments.mean_F()[feature] == pytest.approx(values.mean(), rel=1e-6)
        assert abs(moments.max_F[feature]) == np.abs(values).max()
        assert skewness[feature] == pytest.approx(third / second**1.5, rel=1e-6, abs=1e-6)
        assert kurtosis[feature] == pytest.approx(fourth / second**2 - 3, rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_a_million_tokens() -> None:
    random, n_features = np.random.default_rng(0), 12
    moments, parts = Moments(n_features), []
    for _ in range(50):
        fires_NF = random.random((20_000, n_features), np.float32) < np.geomspace(1e-3, 0.9, n_features)
        values_NF = random.lognormal(0, 1, fires_NF.shape) * random.choice([-1, 1], fires_NF.shape, p=[0.2, 0.8])
        parts.append(np.where(fires_NF, values_NF, 0).astype(np.float32))
        moments.add(firings(parts[-1]))
    assert moments.n_rows == 1_000_000
    check(moments, np.concatenate(parts))


def test_a_mean_far_beyond_the_spread() -> None:
    random = np.random.default_rng(1)
    code_NF = (1000 + random.gamma(2, 0.1, (5000, 3))).astype(np.float32)
    moments = Moments(3)
    for part in np.array_split(code_NF, 7):
        moments.add(firings(part))
    check(moments, code_NF)


def test_values_that_are_all_equal_have_no_shape() -> None:
    moments = Moments(2)
    moments.add(firings(np.full((10, 2), 0.1, np.float32)))
    assert moments.mean_F() == pytest.approx(np.float32(0.1))
    assert all(np.isnan(shape).all() for shape in moments.skewness_kurtosis_F())
