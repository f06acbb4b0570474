"""Linear probes on rows and on a few features, and the random dictionary that they are compared with."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController
from torch import Tensor

from saetools.dictionaries.base import Dictionary, SparseCode
from saetools.dictionaries.topk import TopK
from saetools.evals.base import NotApplicableError
from saetools.rng import torch_seed

ITERATIONS = 200
POOLS = ThreadpoolController()  # of the libraries loaded by now; looking for them takes milliseconds


@dataclass(frozen=True)
class Probe:
    """Predicts the positive class where x . w + bias > 0; w is in the units of the rows."""

    w_D: np.ndarray
    bias: float

    def scores(self, x_ND: np.ndarray) -> np.ndarray:
        """x w + b of each row: positive for the class."""
        return x_ND @ self.w_D + self.bias

    def correct(self, x_ND: np.ndarray, y_N: np.ndarray) -> np.ndarray:
        """bool [N]"""
        return (self.scores(x_ND) > 0) == y_N


def train_probe(x_ND: np.ndarray, y_N: np.ndarray) -> Probe:
    """Logistic regression (L2, C = 1) on standardised columns, given back for the columns as they came.

    A column that does not vary gets weight 0. The classes must both occur.
    """
    mean_D, sd_D = x_ND.mean(0), x_ND.std(0)
    inverse_D = np.divide(1.0, sd_D, out=np.zeros_like(sd_D), where=sd_D > 1e-12 * (1 + np.abs(mean_D)))
    with POOLS.limit(limits=1):  # matrices this small lose time to threads that wait for each other
        fitted = LogisticRegression(max_iter=ITERATIONS).fit((x_ND - mean_D) * inverse_D, y_N)
    w_D = fitted.coef_[0] * inverse_D
    return Probe(w_D, float(fitted.intercept_[0] - mean_D @ w_D))


@dataclass(frozen=True)
class Firings:
    """The code of N rows by feature, on the CPU: its M entries that are not zero, features ascending."""

    row_M: Tensor  # int64
    feature_M: Tensor  # int64
    value_M: Tensor  # float64
    first_F1: Tensor  # int64: feature f has the entries first[f] : first[f + 1]
    n_rows: int

    @staticmethod
    def of(code: SparseCode) -> "Firings":
        row_M, feature_M, value_M = (column.cpu() for column in code.flat())
        return Firings._by_feature(row_M, feature_M, value_M.double(), code.n_features, len(code))

    @staticmethod
    def _by_feature(row_M: Tensor, feature_M: Tensor, value_M: Tensor, n_features: int, n_rows: int) -> "Firings":
        order = feature_M.argsort(stable=True)
        first_F1 = torch.zeros(n_features + 1, dtype=torch.int64)
        first_F1[1:] = torch.bincount(feature_M, minlength=n_features).cumsum(0)
        return Firings(row_M[order], feature_M[order], value_M[order], first_F1, n_rows)

    def halves(self) -> "Firings":
        """Each feature as two whose values are positive: f where it is, F + f where it is negative."""
        feature_M = self.feature_M + self.n_features * (self.value_M < 0)
        return Firings._by_feature(self.row_M, feature_M, self.value_M.abs(), 2 * self.n_features, self.n_rows)

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.first_F1) - 1

    @property
    def mean_l0(self) -> float:
        """Features per row."""
        return len(self.row_M) / max(self.n_rows, 1)

    def of_feature(self, feature: int) -> slice:
        """The entries of one feature."""
        return slice(int(self.first_F1[feature]), int(self.first_F1[feature + 1]))

    def columns(self, features: Tensor) -> np.ndarray:
        """float64 [N, k]: the values of a few features."""
        found_kN = torch.zeros(len(features), self.n_rows, dtype=torch.float64)
        for k, feature in enumerate(features.tolist()):
            entries = self.of_feature(feature)
            found_kN[k, self.row_M[entries]] = self.value_M[entries]
        return found_kN.T.numpy()

    def mean_difference_F(self, rows: np.ndarray, y_N: np.ndarray) -> Tensor:
        """float64 [F]: mean code over the positive rows minus that over the negative ones."""
        weight_N = torch.zeros(self.n_rows, dtype=torch.float64)
        weight_N[torch.from_numpy(rows[y_N])] = 1 / max(y_N.sum(), 1)
        weight_N[torch.from_numpy(rows[~y_N])] -= 1 / max((~y_N).sum(), 1)
        total_F = torch.zeros(self.n_features, dtype=torch.float64)
        return total_F.index_add_(0, self.feature_M, self.value_M * weight_N[self.row_M])


@torch.no_grad()
def encode_rows(dictionary: Dictionary, x_ND: Tensor, n_chunk: int = 8192) -> Firings:
    """The code of rows, a chunk at a time. Raises NotApplicableError for one that is not finite."""
    parts = [dictionary.encode(part.to(dictionary.device)) for part in x_ND.split(n_chunk)]
    found = Firings.of(SparseCode.concatenate(parts))
    if not bool(found.value_M.isfinite().all()):
        raise NotApplicableError("the dictionary's codes are not finite: its weights are damaged or diverged")
    return found


@torch.no_grad()
def random_dictionary(dictionary: Dictionary, x_ND: Tensor, code: Firings, seed: int) -> TopK:
    """The floor: as many random unit atoms, tied encoder, mean of the rows as bias, TopK at the same mean L0."""
    k = max(1, min(round(code.mean_l0), code.n_features))
    config = TopK.Config.model_validate({"kind": TopK.kind, "n_features": code.n_features, "k": k})
    made = TopK(config, dictionary.d_model, torch_seed(seed, "random dictionary") % 2**31)
    made.b_dec_D.copy_(x_ND.double().mean(0))
    return made
