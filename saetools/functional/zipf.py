"""The rank-frequency law of firing densities."""

from dataclasses import dataclass

import numpy as np

MIN_FIRINGS = 10
"""Features that fired less often are left out of the fit: their densities are chance, and the law fails there."""


@dataclass(frozen=True)
class ZipfFit:
    """density of the feature of rank r (1 = most often) ~ exp(log_scale - exponent ln(r + offset)).

    Densities that fall exponentially are fitted by large offsets and exponents, of which the scale itself overflows.
    """

    exponent: float
    offset: float
    log_scale: float
    rms_log_error: float  # root mean square of ln(density / fitted density) over the ranks fitted
    n_ranks: int  # ranks fitted

    def density(self, rank: np.ndarray) -> np.ndarray:
        """The fitted density of each rank."""
        return np.exp(self.log_scale - self.exponent * np.log(rank + self.offset))


def zipf_mandelbrot_fit(counts_F: np.ndarray, n_rows: int, min_firings: int = MIN_FIRINGS) -> ZipfFit | None:
    """Fit ln(count_r / n_rows) = c - s ln(r + q), q >= 0, by least squares over the ranks with enough firings.

    Ranks are weighted by 1 / r, i.e. evenly along the logarithmic axis on which the law is a line; c and s are closed
    forms given q, and q is found by a bounded search over ln(1 + q). None with fewer than five ranks or where all
    counts are equal. Source: Mandelbrot 1953; densities of sparse features: Ayonrinde 2024 (arXiv 2411.02124).
    """
    counts = np.sort(counts_F[counts_F >= min_firings])[::-1].astype(np.float64)
    if len(counts) < 5 or counts[0] == counts[-1]:
        return None
    from scipy.optimize import minimize_scalar

    rank = np.arange(1, len(counts) + 1, dtype=np.float64)
    y, weight = np.log(counts / n_rows), (1 / rank) / (1 / rank).sum()

    def line(offset: float) -> tuple[float, float, float]:
        """(weighted mean square error, slope, intercept) of y over ln(rank + offset)."""
        x = np.log(rank + offset)
        x_mean, y_mean = weight @ x, weight @ y
        slope = (weight @ ((x - x_mean) * (y - y_mean))) / (weight @ (x - x_mean) ** 2)
        intercept = y_mean - slope * x_mean
        return float(weight @ (y - intercept - slope * x) ** 2), float(slope), float(intercept)

    found = minimize_scalar(lambda u: line(np.expm1(u))[0], bounds=(0, np.log1p(10 * len(counts))), method="bounded")
    offset = min((0.0, float(np.expm1(found.x))), key=lambda q: line(q)[0])
    _, slope, intercept = line(offset)
    error = y - intercept - slope * np.log(rank + offset)
    return ZipfFit(-slope, offset, intercept, float(np.sqrt(np.mean(error**2))), len(counts))
