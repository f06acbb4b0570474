"""How many features fire, how often, and which never do. A feature fires where its value is not zero.

    l0_mean, l0_sd                  features per token; sd over tokens (divisor N)
    dead_fraction                   share of features that never fire in the N tokens read: quote it with N
    rare_fraction, dense_fraction   share that fire in less than `rare_below`, in more than `dense_above` of tokens;
                                    null is a share of rare ones where N tokens are too few for any to be seen
    zipf_exponent                   s of density_r ~ (r + q)^-s as functional/zipf.py fits it; the series holds q, the
                                    error and both curves
    under_used_fraction             share (dead included) with a density below `under_used_share` of that law
    unused_capacity                 share of F that a constructed dictionary has not filled; the shares above are of its
                                    atoms: a place that holds no atom is not a dead feature
    outlier_severity                gamma = ||mean x|| / ||sd x|| of the host's activations; sd by coordinate

dead_fraction carries the curve over numbers of tokens n = N / 2^i, rounded down: the expected share that a random n of
the N tokens would leave dead, which is the mean over features of C(N - count, n) / C(N, n). It has no bootstrap
interval, nor have rare_fraction and under_used_fraction: resampling documents can only kill features, never revive
them, so that the value would lie at an end of its interval or outside. `l0_mean` carries quantiles, `rare_fraction` the
histogram of log10 density. Intervals of zipf_exponent and dense_fraction are of 200 resamples.

Cost: one encode per row. Cannot tell: whether the features that fire mean anything.
"""

import numpy as np
import torch
from pydantic import Field

from saetools.evals.base import EvalRecord, Subject
from saetools.evals.bootstrap import DocumentSums
from saetools.evals.rows import CodedRows, RowEvaluation, scatter
from saetools.functional.statistics import density_F, l0_N
from saetools.functional.zipf import zipf_mandelbrot_fit

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BINS_PER_DECADE = 4
CURVE_POINTS = 64
LAW_RESAMPLES = 200
"""Resamples of the firings of all features: each is F numbers, and a fit of the law takes milliseconds."""


class Sparsity(RowEvaluation, name="sparsity"):
    """L0, dead, rare and dense features, the density law and the activations' outlier severity."""

    cost = "one encode per row"

    class Config(RowEvaluation.Config):
        """Borders between rare, ordinary and dense."""

        rare_below: float = Field(1e-4, gt=0, lt=1, description="density (fraction of tokens) below which one is rare")
        dense_above: float = Field(0.1, gt=0, lt=1, description="density above which a feature is dense")
        under_used_share: float = Field(0.5, gt=0, lt=1, description="of the fitted density, below which under-used")

    config: Config

    def start(self, subject: Subject) -> "_Tally":
        return _Tally(self, subject)


class _Tally:
    def __init__(self, evaluation: Sparsity, subject: Subject) -> None:
        n_features, d_model = subject.dictionary.config.n_features, subject.spec.d_model
        self.evaluation, self.config, self.seed = evaluation, evaluation.config, subject.seed
        self.is_constructed = subject.dictionary.trained_by == "construction"
        self.in_use_F = (
            subject.dictionary.in_use_F().cpu() if self.is_constructed else torch.ones(n_features, dtype=torch.bool)
        )
        self.firings = DocumentSums(n_features + 1)  # of each feature, tokens
        self.l0_counts = torch.zeros(n_features + 1, dtype=torch.int64)  # tokens with so many features
        self.l0_sums = DocumentSums(3)  # tokens, L0, L0^2
        self.activation_sums = DocumentSums(2 + d_model)  # tokens, ||x||^2, x

    def add(self, rows: CodedRows) -> None:
        document_N, l0 = rows.where_N2[:, 0], l0_N(rows.code).cpu()
        row_M, feature_M, _ = rows.code.flat()
        counted_N = torch.arange(len(l0))
        every_N = torch.full_like(counted_N, len(self.in_use_F))
        self.firings.add_counts(document_N, torch.cat([row_M.cpu(), counted_N]), torch.cat([feature_M.cpu(), every_N]))
        self.l0_counts += torch.bincount(l0, minlength=len(self.l0_counts))
        ones_N = torch.ones(len(l0), dtype=torch.float64)
        self.l0_sums.add(document_N, torch.stack([ones_N, l0.double(), l0.double().square()], 1))
        x_ND = rows.x_ND.cpu().double()
        columns = torch.cat([ones_N[:, None], x_ND.square().sum(1, keepdim=True), x_ND], 1)
        self.activation_sums.add(document_N, columns)

    def records(self) -> list[EvalRecord]:
        counts_F = torch.from_numpy(self._counts(self.firings.totals())).long()
        return [*self._l0(), *self._life(counts_F), *self._law(counts_F), *self._capacity(), self._severity()]

    def _counts(self, totals: np.ndarray) -> np.ndarray:
        """How often each feature in use fired: [..., F] of totals [..., F + 1]."""
        return totals[..., :-1][..., self.in_use_F.numpy()]

    @property
    def n(self) -> int:
        return self.l0_sums.n_rows

    def _l0(self) -> list[EvalRecord]:
        def mean(totals: np.ndarray) -> np.ndarray:
            return totals[:, 1] / totals[:, 0]

        def sd(totals: np.ndarray) -> np.ndarray:
            return np.sqrt((totals[:, 2] / totals[:, 0] - mean(totals) ** 2).clip(0))

        cumulative = self.l0_counts.cumsum(0).double()
        at = [int(torch.searchsorted(cumulative, max(1.0, np.ceil(q * self.n)))) for q in QUANTILES]
        quantiles = {"quantile": list(QUANTILES), "l0": [float(i) for i in at]}
        return [
            self.evaluation.sums_record(name, self.l0_sums, statistic, "features per token", self.seed, series=series)
            for name, statistic, series in (("l0_mean", mean, quantiles), ("l0_sd", sd, None))
        ]

    def _life(self, counts_F: torch.Tensor) -> list[EvalRecord]:
        density, record, unit = density_F(counts_F, self.n), self.evaluation.record, "fraction of features"
        least = self.config.rare_below
        alive, rare, sees_rare = density > 0, density < least, 1 / self.n < least
        note = f"over {self.n:,} tokens"
        return [
            record("dead_fraction", _share(~alive), unit, self.n, series=self._dead_curve(counts_F), note=note),
            record(
                "rare_fraction",
                _share(alive & rare) if sees_rare else None,
                unit,
                self.n,
                series=self._histogram(counts_F),
                note=note if sees_rare else f"{note}, and what fires in one of them is not below {least:g}",
            ),
            self.evaluation.sums_record(
                "dense_fraction",
                self.firings,
                self._dense,
                unit,
                self.seed,
                n=self.n,
                n_resamples=LAW_RESAMPLES,
                note=note,
            ),
        ]

    def _dense(self, totals: np.ndarray) -> np.ndarray:
        counts = self._counts(totals)
        return (counts / totals[:, -1:] > self.config.dense_above).sum(1) / counts.shape[1]

    def _exponents(self, totals: np.ndarray) -> np.ndarray:
        fits = [zipf_mandelbrot_fit(self._counts(row), int(row[-1])) for row in totals]
        return np.array([np.nan if fit is None else fit.exponent for fit in fits])

    def _dead_curve(self, counts_F: torch.Tensor) -> dict[str, list[float]]:
        """Expected dead fraction over n tokens, n halved from N down to 1."""
        tokens = [self.n >> i for i in range(self.n.bit_length())][::-1]
        values, n_with = torch.unique(counts_F, return_counts=True)
        dead = [float((n_with * silent_in(n, self.n, values)).sum() / n_with.sum()) for n in tokens]
        return {"tokens": [float(n) for n in tokens], "dead_fraction": dead}

    def _histogram(self, counts_F: torch.Tensor) -> dict[str, list[float]]:
        """Living features by log10 of their density, in quarter decades from the one that holds 1 / N."""
        fired = counts_F[counts_F > 0].double()
        lowest = -int(np.ceil(np.log10(self.n)))
        edges = np.linspace(lowest, 0, -lowest * BINS_PER_DECADE + 1) if lowest else np.array([-1.0, 0.0])
        counts, _ = np.histogram(np.clip(np.log10(fired.numpy() / self.n), edges[0], 0), edges)
        return {"log10_density_edge": edges.tolist(), "features": counts.astype(float).tolist()}

    def _law(self, counts_F: torch.Tensor) -> list[EvalRecord]:
        counts = np.sort(counts_F.numpy())[::-1]
        fit, record = zipf_mandelbrot_fit(counts, self.n), self.evaluation.record
        if fit is None:
            note = "too few features fired often enough to fit a law"
            return [
                record("zipf_exponent", None, "exponent", self.n, note=note),
                record("under_used_fraction", None, "fraction of features", self.n, note=note),
            ]
        ranks = np.arange(1, len(counts) + 1)
        under = counts / self.n < self.config.under_used_share * fit.density(ranks)
        shown = np.unique(np.geomspace(1, len(counts), CURVE_POINTS).astype(int))
        series = {
            "offset": [fit.offset],
            "rms_log_error": [fit.rms_log_error],
            "ranks_fitted": [float(fit.n_ranks)],
            "rank": shown.astype(float).tolist(),
            "density": (counts[shown - 1] / self.n).tolist(),
            "fitted_density": fit.density(shown).tolist(),
        }
        return [
            self.evaluation.sums_record(
                "zipf_exponent",
                self.firings,
                self._exponents,
                "exponent",
                self.seed,
                n=self.n,
                n_resamples=LAW_RESAMPLES,
                series=series,
            ),
            record("under_used_fraction", float(under.mean()), "fraction of features", self.n),
        ]

    def _capacity(self) -> list[EvalRecord]:
        if not self.is_constructed:
            return []
        n, note = len(self.in_use_F), f"{int(self.in_use_F.sum()):,} of {len(self.in_use_F):,} places hold an atom"
        unused = _share(~self.in_use_F)
        return [self.evaluation.record("unused_capacity", unused, "fraction of places", n, n_unit="places", note=note)]

    def _severity(self) -> EvalRecord:
        def severity(totals: np.ndarray) -> np.ndarray:
            variance = scatter(totals[:, 1], totals[:, 2:], totals[:, 0]) / totals[:, 0]
            return np.sqrt(np.square(totals[:, 2:] / totals[:, :1]).sum(1) / variance)

        return self.evaluation.sums_record("outlier_severity", self.activation_sums, severity, "ratio", self.seed)


def silent_in(n_drawn: int, n_tokens: int, counts: torch.Tensor) -> torch.Tensor:
    """P(none of n_drawn of n_tokens tokens, drawn without replacement, is one of `counts` given ones); float64.

    C(N - count, n) / C(N, n) = exp(ln (N - count)! - ln (N - count - n)! - ln N! + ln (N - n)!); 0 where count > N - n.
    """

    def log_factorial(n: torch.Tensor) -> torch.Tensor:
        return torch.lgamma(n.double() + 1)

    others, whole = n_tokens - counts, torch.tensor(n_tokens)
    left = others - n_drawn
    log_p = log_factorial(others) - log_factorial(left.clamp_min(0)) - log_factorial(whole)
    return torch.where(left >= 0, (log_p + log_factorial(whole - n_drawn)).exp(), 0.0)


def _share(mask_F: torch.Tensor) -> float:
    return float(mask_F.double().mean())
