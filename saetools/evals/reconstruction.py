"""How well rows are rebuilt. With e = x - recon, sums over all N held-out rows, mean = (1/N) sum x:

    fvu                 = sum ||e||^2 / sum ||x - mean||^2                      fraction; 0 is perfect, 1 is the mean
    explained_variance  = 1 - sum ||e - mean e||^2 / sum ||x - mean||^2         fraction; a constant error is forgiven
    explained_variance_saebench = 1 - E||e||^2 / (E||x||^2 - (E||x||^2 / D)^2)  SAEBench's formula, for comparison only
    cosine              = mean of cos(x, recon)                                 0 where either is the zero vector
    norm_ratio          = mean of ||recon|| / ||x||                             rows with x = 0 are left out
    relative_bias       = E||recon||^2 / E[x . recon]                           1 where no rescaling of recon helps

Numerators and denominators are summed over the whole set, never averaged over batches. `fvu` carries a curve over the
position in the host's window (octaves: 0, 1, 2-3, 4-7, ...), each with the variance of the whole set as denominator
per row; rows that are of no documents have none. SAEBench (custom evals/core, "corrected" formula) subtracts the
squared mean of *squares*: it is not a fraction of variance and changes with the units of x; never compare it with the
others. relative_bias is gamma of Rajamanoharan et al. 2024 (arXiv 2404.16014), section 4.

Cost: one encode and decode of each row. Cannot tell: whether the error matters to the model (see loss_recovered), or
whether features mean anything: a linear map of rank D has fvu 0.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from saetools.evals.base import EvalRecord, Subject
from saetools.evals.bootstrap import DocumentSums, Statistic
from saetools.evals.rows import CodedRows, RowEvaluation, scatter

SCALARS = ("rows", "error", "square", "recon_square", "dot", "cosine", "ratio", "rows_with_ratio")
"""Columns of the sums, before those of x and of e (D each)."""
N_OCTAVES = 24


class Reconstruction(RowEvaluation, name="reconstruction"):
    """FVU, explained variance, cosine, norm ratio, relative bias and the error by position."""

    cost = "one encode and decode per row"

    def start(self, subject: Subject) -> "_Tally":
        return _Tally(self, subject)


class _Tally:
    """Sums per document of the columns SCALARS, x and e; and by octave of the position."""

    def __init__(self, evaluation: Reconstruction, subject: Subject) -> None:
        self.evaluation, self.seed, self.d_model = evaluation, subject.seed, subject.spec.d_model
        self.window = _window_tokens(subject)
        name = subject.heldout.document_id  # of a file that tells no documents always the same
        self.has_positions = self.window is not None or name(0) != name(1)  # else they are numbers of rows
        self.sums = DocumentSums(len(SCALARS) + 2 * self.d_model)
        self.by_octave = torch.zeros(N_OCTAVES, 2, dtype=torch.float64)  # rows, error

    def add(self, rows: CodedRows) -> None:
        x_ND, recon_ND = rows.x_ND.cpu().double(), rows.recon_ND.cpu().double()
        columns_NC = row_columns(x_ND, recon_ND)
        self.sums.add(rows.where_N2[:, 0], columns_NC)
        position_N = rows.where_N2[:, 1] if self.window is None else rows.where_N2[:, 1] % self.window
        self.by_octave.index_add_(0, octave(position_N), columns_NC[:, :2])

    def records(self) -> list[EvalRecord]:
        statistics: dict[str, tuple[Statistic, str]] = {
            "fvu": (self._of(fvu), "fraction of variance"),
            "explained_variance": (self._of(explained_variance), "fraction of variance"),
            "explained_variance_saebench": (self._of(explained_variance_saebench), "SAEBench's own"),
            "cosine": (lambda totals: _column(totals, "cosine") / _column(totals, "rows"), "cosine"),
            "norm_ratio": (lambda totals: _column(totals, "ratio") / _column(totals, "rows_with_ratio"), "ratio"),
            "relative_bias": (lambda totals: _column(totals, "recon_square") / _column(totals, "dot"), "ratio"),
        }
        return [
            self.evaluation.sums_record(
                name,
                self.sums,
                statistic,
                unit,
                self.seed,
                series=self._by_position() if name == "fvu" else None,
                note="not a variance fraction; depends on units" if name == "explained_variance_saebench" else None,
            )
            for name, (statistic, unit) in statistics.items()
        ]

    def _of(self, formula: Callable[[np.ndarray, int], np.ndarray]) -> Statistic:
        return lambda totals: formula(totals, self.d_model)

    def _by_position(self) -> dict[str, list[float]]:
        totals = self.sums.totals()[None]
        variance = float(variation(totals, self.d_model)[0] / _column(totals, "rows")[0])
        used = [i for i in range(N_OCTAVES) if self.by_octave[i, 0] > 0]
        rows, error = (self.by_octave[used, i].tolist() for i in (0, 1))
        if np.isnan(variance) or not self.has_positions:
            return {}
        return {
            "first_position": [float(2 ** (i - 1)) if i else 0.0 for i in used],
            "tokens": rows,
            "fvu": [e / n / variance for e, n in zip(error, rows, strict=True)],
        }


def row_columns(x_ND: Tensor, recon_ND: Tensor) -> Tensor:
    """float64 [N, 8 + 2 D]: each row's share of every sum, in the order of SCALARS, then x, then e."""
    error_ND = x_ND - recon_ND
    square_N, recon_square_N = x_ND.square().sum(1), recon_ND.square().sum(1)
    dot_N = (x_ND * recon_ND).sum(1)
    norms_N = (square_N * recon_square_N).sqrt()
    cosine_N = torch.where(norms_N > 0, dot_N / norms_N, 0.0)
    has_ratio_N = square_N > 0
    ratio_N = torch.where(has_ratio_N, (recon_square_N / square_N).sqrt(), 0.0)
    scalars = (
        torch.ones_like(dot_N),
        error_ND.square().sum(1),
        square_N,
        recon_square_N,
        dot_N,
        cosine_N,
        ratio_N,
        has_ratio_N.double(),
    )
    return torch.cat([torch.stack(scalars, 1), x_ND, error_ND], 1)


def octave(position_N: Tensor) -> Tensor:
    """int64: 0 for position 0, and 1 + floor(log2 position) for others; the last octave holds all beyond."""
    return torch.where(
        position_N > 0, 1 + position_N.clamp_min(1).double().log2().floor().long(), torch.zeros_like(position_N)
    ).clamp(0, N_OCTAVES - 1)


def variation(totals: np.ndarray, d_model: int) -> np.ndarray:
    """sum ||x - mean||^2; nan where x does not vary."""
    return scatter(_column(totals, "square"), _vectors(totals, d_model)[0], _column(totals, "rows"))


def fvu(totals: np.ndarray, d_model: int) -> np.ndarray:
    """sum ||e||^2 / sum ||x - mean||^2; nan where x does not vary."""
    return _column(totals, "error") / variation(totals, d_model)


def explained_variance(totals: np.ndarray, d_model: int) -> np.ndarray:
    """1 - sum ||e - mean e||^2 / sum ||x - mean||^2; nan where x does not vary."""
    error = _column(totals, "error") - _squared_norm(_vectors(totals, d_model)[1]) / _column(totals, "rows")
    return 1 - error / variation(totals, d_model)


def explained_variance_saebench(totals: np.ndarray, d_model: int) -> np.ndarray:
    """1 - E||e||^2 / (E||x||^2 - (E||x||^2 / D)^2), as SAEBench computes it over batches of equal size."""
    n, square = _column(totals, "rows"), _column(totals, "square")
    return 1 - (_column(totals, "error") / n) / (square / n - (square / n / d_model) ** 2)


def _column(totals: np.ndarray, name: str) -> np.ndarray:
    return totals[:, SCALARS.index(name)]


def _vectors(totals: np.ndarray, d_model: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of x and of e, [R, D] each."""
    first = len(SCALARS)
    return totals[:, first : first + d_model], totals[:, first + d_model :]


def _squared_norm(vectors_RD: np.ndarray) -> np.ndarray:
    return np.square(vectors_RD).sum(1)


def _window_tokens(subject: Subject) -> int | None:
    """Kept tokens of a full window: a document's windows begin at the multiples of it. None where unknown."""
    spec = subject.spec
    return None if spec.context_tokens is None else spec.context_tokens - bool(spec.prepend_bos)
