"""Angles among the atoms, and between what fires together.

With unit atoms d_i, |.| the absolute cosine, F features (places that hold an atom), N tokens:

    coherence             = max over i != j of |<d_i, d_j>|; the series holds the Babel function and the quantiles of
                            each atom's nearest neighbour
    mean_cosine           = mean over i != j of |<d_i, d_j>|
    near_duplicates       = share of atoms whose nearest neighbour is above `duplicate_above`
    encoder_decoder_cosine = mean over features of cos(encoder row, atom)
    co_firing_cosine      = mean over tokens of the mean |cos| over pairs of atoms that fire together: conditional
                            orthogonality, the cosine of an atom with those selected after it (the same for any order)
    next_atom_cosine      = mean |cos| of an atom with the next one, in descending |value|
    independent_cosine    = mean |cos| of pairs drawn independently by firing frequency: what co_firing_cosine would be
                            if features fired independently
    epsilon_lbo           = median over tokens of | ||z||^2 - ||f||^2 | / ((F - 1) ||f||^2), z = x - b_dec,
                            f_i = value_i * ||atom_i||: the least coherence that explains the gap of the two norms
    feature_norm_ratio    = median of ||f|| / ||z||; the series holds 500 tokens for the ZF plot

Sources: Babel function: Tropp 2004; conditional orthogonality: Costa et al. 2025 (arXiv 2506.03093, its exact
definition is not public); epsilon_LBO and ZF plot: Lee et al. 2025 (arXiv 2503.24277), whose plot adds ||b_dec|| to f
and does not subtract it from x.

Codes are looked at in a share of the rows (`pair_share`), drawn evenly from all documents; firing is counted in all.

Cost: one encode per row, N K^2 D for the pairs of that share, F^2 D for the atoms. Cannot tell: whether similar atoms
are redundant or the two sides of a hierarchy.
"""

from collections.abc import Iterator

import numpy as np
import torch
from pydantic import Field

from saetools.dictionaries.base import SparseCode
from saetools.evals.base import EvalRecord, Subject
from saetools.evals.bootstrap import DOCUMENTS, DocumentSums, Statistic, median_interval, too_few
from saetools.evals.rows import CodedRows, RowEvaluation
from saetools.evals.sample import DRAW, TokenSample
from saetools.features.sampling import uniform
from saetools.functional.afa import epsilon_lower_bound_N
from saetools.functional.geometry import BLOCK_BYTES, Angles, angles, co_firing_cosines, row_cosines
from saetools.functional.statistics import firing_counts_F

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
ZF_POINTS = 500


class Geometry(RowEvaluation, name="geometry"):
    """Coherence of the atoms, angles of co-firing ones, norms of codes against norms of rows."""

    cost = "one encode per row, N K^2 D for pairs that fire together, F^2 D for the atoms"

    class Config(RowEvaluation.Config):
        """Sizes and borders."""

        pair_share: float = Field(
            0.1, gt=0, le=1, description="share of the rows, drawn evenly, whose codes are looked at"
        )
        n_babel: int = Field(64, gt=0, description="greatest m of the Babel function")
        duplicate_above: float = Field(
            0.9, gt=0, lt=1, description="|cosine| above which two atoms are near-duplicates"
        )

    config: Config

    def missing(self, subject: Subject) -> str | None:
        few = subject.dictionary.config.n_features < 2
        return "angles need two atoms, and the dictionary has one" if few else super().missing(subject)

    def start(self, subject: Subject) -> "_Tally":
        return _Tally(self, subject)


def _chunks(code: SparseCode, d_model: int) -> Iterator[tuple[torch.Tensor, SparseCode]]:
    """(rows, their code) in blocks of bounded memory, the fullest rows first: none is as wide as the fullest of all."""
    slots_K = torch.arange(1, code.values.shape[1] + 1, device=code.values.device)
    last_NK = torch.nn.functional.pad((code.values != 0) * slots_K, (1, 0))  # a code without slots has width 0
    width_N, order_N = last_NK.amax(1).sort(descending=True)
    start = 0
    while start < len(code):
        k = max(int(width_N[start]), 1)
        n_rows = max(1, BLOCK_BYTES // (4 * k * max(d_model, 2 * k)))  # atoms; cosines in float64
        part = order_N[start : start + n_rows]
        yield part.cpu(), SparseCode(code.values[part, :k], code.indices[part, :k], code.n_features)
        start += n_rows


class _Tally:
    def __init__(self, evaluation: Geometry, subject: Subject) -> None:
        self.evaluation, self.seed, self.dictionary = evaluation, subject.seed, subject.dictionary
        self.atoms_FD = subject.dictionary.directions()
        self.norm_F = torch.linalg.vector_norm(self.atoms_FD.float(), dim=1)
        self.n_atoms = int(subject.dictionary.in_use_F().sum())
        self.n_rows, self.counts_F = 0, torch.zeros(len(self.atoms_FD), dtype=torch.int64)
        self.pair_sums = DocumentSums(4)  # sum of token means, tokens with a pair, sum of next, number of next
        self.norms = TokenSample(4, subject.seed)  # epsilon, ||z||, ||f||, document

    def add(self, rows: CodedRows) -> None:
        self.n_rows += len(rows.x_ND)
        self.counts_F += firing_counts_F(rows.code).cpu()
        rows = self._drawn(rows)
        for part, code in _chunks(rows.code, self.atoms_FD.shape[1]):
            self.pair_sums.add(rows.where_N2[part, 0], self._pair_columns(code))
        self._add_norms(rows)

    def _drawn(self, rows: CodedRows) -> CodedRows:
        """The rows of least hash, whatever batch they came in."""
        where = rows.where_N2.numpy()
        drawn = torch.from_numpy(
            np.flatnonzero(uniform(DRAW, where[:, 0], where[:, 1]) < self.evaluation.config.pair_share)
        )
        code, device = rows.code.to_fixed(), rows.x_ND.device
        at = drawn.to(device)
        return CodedRows(
            rows.x_ND[at],
            SparseCode(code.values[at], code.indices[at], code.n_features),
            rows.recon_ND[at],
            rows.where_N2[drawn],
        )

    def _pair_columns(self, code: SparseCode) -> torch.Tensor:
        sum_N, pairs_N, next_NK = co_firing_cosines(code.values, code.indices, self.atoms_FD)
        has_pair_N = pairs_N > 0
        mean_N = torch.where(has_pair_N, sum_N / pairs_N.clamp_min(1), 0.0)
        return torch.stack([mean_N, has_pair_N.double(), next_NK.nansum(1), next_NK.isfinite().sum(1).double()], 1)

    def _add_norms(self, rows: CodedRows) -> None:
        row_M, feature_M, value_M = rows.code.flat()
        squares_N = torch.zeros(len(rows.x_ND), dtype=torch.float64)
        squares_N.index_add_(0, row_M.cpu(), (value_M * self.norm_F[feature_M]).cpu().double().square())
        z_square_N = (rows.x_ND - self.dictionary.b_dec_D.detach()).cpu().double().square().sum(1)
        epsilon_N = epsilon_lower_bound_N(z_square_N, squares_N, self.n_atoms)
        document_N = rows.where_N2[:, 0].double()
        self.norms.add(rows.where_N2, torch.stack([epsilon_N, z_square_N.sqrt(), squares_N.sqrt(), document_N], 1))

    def records(self) -> list[EvalRecord]:
        in_use_F = self.dictionary.in_use_F()
        if in_use_F.sum() < 2:
            in_use_F[:] = True
        found = angles(self.atoms_FD[in_use_F], self.evaluation.config.n_babel, self.counts_F[in_use_F.cpu()])
        return [*self._of_atoms(found, in_use_F), *self._of_pairs(found), *self._of_norms()]

    def _of_atoms(self, found: Angles, in_use_F: torch.Tensor) -> list[EvalRecord]:
        record, n = self.evaluation.record, int(in_use_F.sum())
        series = {
            "m": [float(m) for m in range(1, len(found.largest_sum_M) + 1)],
            "babel": found.largest_sum_M.tolist(),
            "quantile": list(QUANTILES),
            "nearest_cosine": np.quantile(found.nearest_F.double().numpy(), QUANTILES).tolist(),
        }
        duplicates = (found.nearest_F > self.evaluation.config.duplicate_above).double().mean()
        encoder_FD = self.dictionary.encoder_directions()
        cosine = None
        if encoder_FD is not None:
            cosine = float(row_cosines(encoder_FD[in_use_F], self.atoms_FD[in_use_F]).double().mean())
        note = "this kind has no encoder matrix" if encoder_FD is None else None
        return [
            record("coherence", float(found.nearest_F.max()), "cosine", n, n_unit="features", series=series),
            record("near_duplicates", float(duplicates), "fraction of features", n, n_unit="features"),
            record("encoder_decoder_cosine", cosine, "cosine", n, n_unit="features", note=note),
            record("mean_cosine", found.mean, "cosine", n * (n - 1) // 2, n_unit="pairs"),
        ]

    def _of_pairs(self, found: Angles) -> list[EvalRecord]:
        def ratio(numerator: int) -> Statistic:
            return lambda totals: totals[:, numerator] / totals[:, numerator + 1]

        records = [
            self.evaluation.sums_record(
                name,
                self.pair_sums,
                ratio(column),
                "cosine",
                self.seed,
                n=int(self.pair_sums.totals()[column + 1]),
                n_unit=n_unit,
            )
            for name, column, n_unit in (("co_firing_cosine", 0, "tokens"), ("next_atom_cosine", 2, "pairs"))
        ]
        chance = self.evaluation.record("independent_cosine", found.mean_weighted, "cosine", self.n_rows)
        return [*records, chance]

    def _of_norms(self) -> list[EvalRecord]:
        epsilon, z, f, document = self.norms.columns().T
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = f / z
        quantiles = {"quantile": list(QUANTILES), "epsilon": self.norms.quantiles(0, QUANTILES)}
        points = {"z_norm": z[:ZF_POINTS].tolist(), "f_norm": f[:ZF_POINTS].tolist()}
        return [
            self._median(name, values, document, unit, series)
            for name, values, unit, series in (
                ("epsilon_lbo", epsilon, "cosine", quantiles),
                ("feature_norm_ratio", ratio, "ratio", points),
            )
        ]

    def _median(
        self, name: str, values: np.ndarray, document: np.ndarray, unit: str, series: dict[str, list[float]]
    ) -> EvalRecord:
        """The median over the tokens where the value is defined."""
        defined = np.isfinite(values)
        values, document = values[defined], document[defined]
        return self.evaluation.record(
            name,
            float(np.median(values)) if len(values) else None,
            unit,
            len(values),
            spread=median_interval(values, document, self.seed),
            series=series,
            note=too_few(len(np.unique(document)), DOCUMENTS) if len(values) else None,
        )
