"""Ranks, and how well a score separates two classes, from histograms: in memory that does not grow with the data."""

import numpy as np
from torch import Tensor


def auc_F(positive_FB: Tensor, negative_FB: Tensor) -> Tensor:
    """float64 [F]: P(score of a positive > score of a negative) + P(equal) / 2, ties within a bin counted as equal.

    Rows are histograms over bins of ascending score. nan where a row has no positive or no negative. Binning errs by
    at most half the probability that a positive and a negative share a bin.
    """
    positive_FB, negative_FB = positive_FB.double(), negative_FB.double()
    below_FB = negative_FB.cumsum(1) - negative_FB
    wins_F = (positive_FB * (below_FB + negative_FB / 2)).sum(1)
    return wins_F / (positive_FB.sum(1) * negative_FB.sum(1))


def ranks(values_N: np.ndarray) -> np.ndarray:
    """float64 [N]: 1 for the least value; equal values share the mean of their ranks."""
    _, place_N, n_V = np.unique(values_N, return_inverse=True, return_counts=True)
    return (n_V.cumsum() - (n_V - 1) / 2)[place_N]
