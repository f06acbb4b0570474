"""Exact statistics of every feature, accumulated over a stream of codes in memory that depends on F alone."""

import numpy as np
import torch

from saetools.features.firings import Firings
from saetools.features.records import N_BINS, Histogram, bin_of
from saetools.functional.statistics import density_F

N_POWERS = 4


class Moments:
    """Counts, power sums, greatest value and histograms per feature.

    Powers are of the difference to the first value that a feature took: of raw values they would lose as many digits
    as the mean has over the standard deviation. All sums are float64; a histogram entry is uint32, so at most 4.29e9
    firings per bin. Memory: 3.2 kB a feature.
    """

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features
        self.n_rows = 0
        self.count_F = np.zeros(n_features, np.int64)
        self.first_F = np.zeros(n_features)
        self.power_sums_PF = np.zeros((N_POWERS, n_features))  # sums of (a - first)^1 to ^4
        self.square_sum_F = np.zeros(n_features)  # of a^2
        self.max_F = np.zeros(n_features, np.float32)  # of greatest magnitude, with sign
        self.histogram_SFB = np.zeros((2, n_features, N_BINS), np.uint32)  # S: positive, negative

    def add(self, firings: Firings) -> None:
        """Take in one batch; O(M)."""
        self.n_rows += firings.n_rows
        if not len(firings.feature_M):
            return
        feature, value = firings.feature_M, firings.value_M.astype(np.float64)
        start = np.flatnonzero(np.r_[True, np.diff(feature) != 0])  # firings are sorted by feature
        owner = feature[start]
        self.first_F[owner] = np.where(self.count_F[owner] > 0, self.first_F[owner], value[start])
        self.count_F += np.bincount(feature, minlength=self.n_features)
        difference = value - self.first_F[feature]
        for power in range(N_POWERS):
            self.power_sums_PF[power] += np.bincount(feature, difference ** (power + 1), minlength=self.n_features)
        self.square_sum_F += np.bincount(feature, value**2, minlength=self.n_features)
        np.add.at(self.histogram_SFB, ((value < 0).astype(np.int64), feature, bin_of(np.abs(value))), 1)
        high, low = np.maximum.reduceat(firings.value_M, start), np.minimum.reduceat(firings.value_M, start)
        extreme = np.where(high >= -low, high, low)
        greater = np.abs(extreme) > np.abs(self.max_F[owner])
        self.max_F[owner[greater]] = extreme[greater]

    def density_F(self) -> np.ndarray:
        """float64 [F]: fraction of rows in which each feature fires."""
        return density_F(torch.from_numpy(self.count_F), self.n_rows).numpy()

    def mean_square_F(self) -> np.ndarray:
        """float64 [F]: E[a^2] over all rows."""
        return self.square_sum_F / max(self.n_rows, 1)

    def mean_F(self) -> np.ndarray:
        """float64 [F]: mean value where the feature fires; nan where it never does."""
        return self.first_F + _ratio(self.power_sums_PF[0], self.count_F)

    def skewness_kurtosis_F(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [F] each: m3 / m2^1.5 and m4 / m2^2 - 3 of the values where the feature fires.

        m_j are central moments with divisor count, from power sums; nan where the variance is 0 up to the rounding
        of the sums (below 1e-9 of the mean squared difference to the first value).
        """
        m1, s2, s3, s4 = (_ratio(total, self.count_F) for total in self.power_sums_PF)
        variance = s2 - m1**2
        variance = np.where(variance > 1e-9 * s2, variance, np.nan)
        third = s3 - 3 * m1 * s2 + 2 * m1**3
        fourth = s4 - 4 * m1 * s3 + 6 * m1**2 * s2 - 3 * m1**4
        return third / variance**1.5, fourth / variance**2 - 3

    def histogram(self, feature: int) -> Histogram:
        """The counts of one feature between its first and last bin that is not empty."""
        counts_SB = self.histogram_SFB[:, feature]
        filled = np.flatnonzero(counts_SB.any(axis=0))
        if not len(filled):
            return Histogram()
        span = slice(int(filled[0]), int(filled[-1]) + 1)
        positive, negative = (tuple(row[span].tolist()) if row.any() else () for row in counts_SB)
        return Histogram(first=span.start, positive=positive, negative=negative)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
