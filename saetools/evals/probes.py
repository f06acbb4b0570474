"""Linear probes on rows and on a few features, and the random dictionary that they are compared with."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from saetools.dictionaries.base import Dictionary, SparseCode
from saetools.dictionaries.topk import TopK
from saetools.functional.statistics import l0_N
from saetools.rng import torch_seed

ITERATIONS = 200


@dataclass(frozen=True)
class Probe:
    """Predicts the positive class where x . w + bias > 0; w is in the units of the rows."""

    w_D: np.ndarray
    bias: float

    def scores(self, x_ND: np.ndarray) -> np.ndarray:
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
    with threadpool_limits(1):  # matrices this small lose time to threads that wait for each other
        fitted = LogisticRegression(max_iter=ITERATIONS).fit((x_ND - mean_D) * inverse_D, y_N)
    w_D = fitted.coef_[0] * inverse_D
    return Probe(w_D, float(fitted.intercept_[0] - mean_D @ w_D))


@torch.no_grad()
def encode_rows(dictionary: Dictionary, x_ND: Tensor, n_chunk: int = 8192) -> SparseCode:
    """The code of rows on the CPU, a chunk at a time."""
    parts = [dictionary.encode(part.to(dictionary.device)) for part in x_ND.split(n_chunk)]
    code = SparseCode.concatenate(parts)
    offsets = None if code.offsets_N1 is None else code.offsets_N1.cpu()
    return SparseCode(code.values.cpu(), code.indices.cpu(), code.n_features, offsets)


def mean_difference_F(code: SparseCode, rows: np.ndarray, y_N: np.ndarray) -> Tensor:
    """float64 [F]: mean code over the positive rows minus that over the negative ones."""
    weight_N = torch.zeros(len(code), dtype=torch.float64)
    weight_N[torch.from_numpy(rows[y_N])] = 1 / max(y_N.sum(), 1)
    weight_N[torch.from_numpy(rows[~y_N])] -= 1 / max((~y_N).sum(), 1)
    row_M, feature_M, value_M = code.flat()
    return torch.zeros(code.n_features, dtype=torch.float64).index_add_(
        0, feature_M, value_M.double() * weight_N[row_M]
    )


def columns(code: SparseCode, features: Tensor) -> np.ndarray:
    """float64 [N, k]: the values of a few features."""
    place_F = torch.full((code.n_features,), -1)
    place_F[features] = torch.arange(len(features))
    row_M, feature_M, value_M = code.flat()
    wanted = place_F[feature_M] >= 0
    found_Nk = torch.zeros(len(code), len(features), dtype=torch.float64)
    found_Nk[row_M[wanted], place_F[feature_M[wanted]]] = value_M[wanted].double()
    return found_Nk.numpy()


@torch.no_grad()
def random_dictionary(dictionary: Dictionary, x_ND: Tensor, code: SparseCode, seed: int) -> TopK:
    """The floor: as many random unit atoms, tied encoder, mean of the rows as bias, TopK at the same mean L0."""
    k = max(1, min(round(float(l0_N(code).double().mean())), code.n_features))
    config = TopK.Config.model_validate({"kind": TopK.kind, "n_features": code.n_features, "k": k})
    made = TopK(config, dictionary.d_model, torch_seed(seed, "random dictionary") % 2**31)
    made.b_dec_D.copy_(x_ND.double().mean(0))
    return made
