"""The rank-frequency fit on laws that are known."""

import numpy as np
import pytest

from saetools.functional.zipf import zipf_mandelbrot_fit


@pytest.mark.parametrize(("exponent", "offset"), [(1.0, 0.0), (0.7, 5.0), (1.8, 20.0)])
def test_exact_law(exponent, offset):
    rank = np.arange(1, 501)
    counts = 1e9 * (rank + offset) ** -exponent
    fit = zipf_mandelbrot_fit(np.random.default_rng(0).permutation(counts), 10**9)
    assert fit.exponent == pytest.approx(exponent, rel=1e-2)
    assert fit.offset == pytest.approx(offset, rel=0.05, abs=0.02)
    np.testing.assert_allclose(fit.density(rank), counts / 1e9, rtol=1e-2)


@pytest.mark.parametrize(("tau", "n"), [(20, 200), (50, 1000), (300, 3000)])
def test_densities_that_fall_exponentially(tau, n):
    """Offset and exponent become so large that the scale is beyond float64; densities were infinite or nan."""
    rank = np.arange(1, n + 1)
    counts = np.round(2e5 * np.exp(-rank / tau))
    fit = zipf_mandelbrot_fit(counts, 10**6)
    density = fit.density(rank[: fit.n_ranks])
    error = np.log(density / (counts[: fit.n_ranks] / 1e6))
    assert np.sqrt(np.mean(error**2)) == pytest.approx(fit.rms_log_error, rel=1e-6) and fit.rms_log_error < 0.2


def test_rare_features_do_not_bend_the_fit():
    rank = np.arange(1, 301)
    counts = 1e5 * rank**-1.0
    with_tail = np.concatenate([counts, np.full(300, 3.0)])
    assert zipf_mandelbrot_fit(with_tail, 10**6) == zipf_mandelbrot_fit(counts, 10**6)


def test_ranks_weigh_evenly_along_the_logarithm():
    """Weighted least squares leave residuals without a mean, by the weights 1 / rank. Ten firings are enough."""
    rank = np.arange(1, 201)
    counts = np.sort(np.random.default_rng(0).poisson(3e3 / rank**1.1).clip(10))[::-1]
    fit = zipf_mandelbrot_fit(counts, 10**6)
    assert fit.n_ranks == 200 and (counts == 10).any()
    residual = np.log(counts / 1e6 / fit.density(rank))
    assert (residual / rank).sum() == pytest.approx(0, abs=1e-9) and abs(residual.mean()) > 1e-4
    assert fit.rms_log_error == pytest.approx(np.sqrt(np.mean(residual**2)))


@pytest.mark.parametrize("counts", [[], [20, 30, 40], [50] * 10, [1] * 100])
def test_nothing_to_fit(counts):
    assert zipf_mandelbrot_fit(np.array(counts), 1000) is None
