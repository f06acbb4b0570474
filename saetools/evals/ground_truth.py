"""Against the truth, where rows are planted (activations/planted.py): which atoms were found, and do they fire right?

Learned feature m(i) is paired with planted atom i one to one by cosine (Hungarian); of a kind with signed codes, whose
atoms may point either way, by |cosine|, and so is every cosine below. Over planted atoms i and tokens:

    matched_cosine         mean of cos(atom m(i), planted i); `matched_cosine_chance`: the same for as many random
                           unit atoms
    recovered_fraction     share of planted atoms with a cosine of at least `recovered_at`
    support_precision      tokens and i where m(i) fires and i does, by those where m(i) fires
    support_recall         ... by those where i does;  support_f1: their harmonic mean
    support_auc            mean over i of the AUC of |value of m(i)| for "i fires" (values binned to an eighth octave)
    spurious_fraction      share of learned features that fire and whose best planted cosine is below `split_at`
    features_per_atom      living learned features per planted atom that is the best match (at least `split_at`) of any:
                           above 1 is splitting

and where the truth has a hierarchy (a child fires only where its parent does), over children c with parent p:

    parent_recall_alone, parent_recall_with_child   of m(p), where p fires without any child / with c
    absorption             share of c's tokens at which m(p) is silent, m(c) fires, and the atom of m(c) points to p
                           more than c itself does, by at least `absorbs_at` in cosine
    hierarchy_recovered    share of pairs where m(p) fires at 90 % of m(c)'s tokens or more, but not the reverse

Intervals of means over atoms, features or pairs resample these, the others blocks of rows.

Absorption: Chanin et al. 2024 (arXiv 2409.14507), there measured by probes, here by the truth. Cost: one encode per
row. Cannot tell: anything about rows that are not sparse sums of independent directions, which real ones may not be.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetools.activations.planted import PlantedSource
from saetools.dictionaries.base import SparseCode
from saetools.errors import DataError
from saetools.evals.base import EvalRecord, Evaluation, Subject, Tick, no_tick
from saetools.evals.bootstrap import DocumentSums, Statistic
from saetools.features.records import N_BINS, bin_of
from saetools.functional.matching import best_matches, hungarian_match
from saetools.functional.ranking import auc_F
from saetools.functional.statistics import firing_counts_F
from saetools.rng import torch_seed

NOT_RECOVERED = "no child fired often enough to tell"
MIN_TOKENS = 10
"""A child (or parent alone) that fires at fewer tokens is left out of the hierarchy's figures."""


class GroundTruth(Evaluation, name="ground_truth"):
    """Atoms recovered, supports right, absorption and splitting, where the truth is planted."""

    cost = "one encode per planted row"

    class Config(Evaluation.Config):
        """Sizes and borders."""

        n_tokens: int = Field(16_384, gt=0, description="planted rows; fewer where there are fewer")
        recovered_at: float = Field(0.9, gt=0, le=1, description="cosine from which an atom counts as recovered")
        split_at: float = Field(0.7, gt=0, le=1, description="cosine from which a learned feature belongs to an atom")
        absorbs_at: float = Field(0.2, gt=0, le=1, description="extra cosine with the parent that marks absorption")

    config: Config

    @property
    def n_tokens(self) -> int:
        return self.config.n_tokens

    def missing(self, subject: Subject) -> str | None:
        return None if isinstance(subject.heldout, PlantedSource) else "needs planted rows, whose truth is known"

    @torch.no_grad()
    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        source = subject.heldout
        assert isinstance(source, PlantedSource), "`missing` excludes other sources"
        truth_GD = source.planted.atoms_FD
        paired = _Paired.of(subject.dictionary.directions().cpu(), truth_GD, subject.dictionary.signed)
        counts = _Counts(paired, source.planted.parent_F)
        for number, rows in source.batches(0):
            rows = rows.select(slice(0, self.config.n_tokens - counts.sums.n_rows))
            truth_NG = source.planted.block(number, source.batch_rows, source.split).code_NF[: len(rows)]
            code = subject.dictionary.encode(rows.x_ND.to(subject.dictionary.device))
            counts.add(rows.where_N2[:, 0], truth_NG, paired.values(code))
            counts.fired_F += firing_counts_F(code).cpu()
            tick(len(rows))
            if counts.sums.n_rows >= self.config.n_tokens:
                break
        if not counts.sums.n_rows:
            raise DataError("The planted source has no held-out rows. Raise n_heldout_batches.")
        return [
            *self._atoms(subject, paired, counts, truth_GD),
            *self._support(subject, counts),
            *self._tree(subject, counts),
        ]

    def _atoms(self, subject: Subject, paired: "_Paired", counts: "_Counts", truth_GD: Tensor) -> list[EvalRecord]:
        learned_FD = subject.dictionary.directions().cpu()
        cosine_G = paired.cosine_G.double()
        generator = torch.Generator().manual_seed(torch_seed(subject.seed, "ground truth chance"))
        n_learned, signed = int(learned_FD.any(dim=1).sum()), subject.dictionary.signed  # some places may hold no atom
        random_FD = torch.randn(n_learned, learned_FD.shape[1], generator=generator, dtype=torch.float32, device="cpu")
        chance = hungarian_match(random_FD, truth_GD, signed).cosine_P
        best_F, atom_F = best_matches(learned_FD, truth_GD, signed)
        alive_F = counts.fired_F > 0
        belongs_F = alive_F & (best_F >= self.config.split_at)
        n_atoms = len(truth_GD)
        found = torch.unique(atom_F[belongs_F])
        per_atom = float(belongs_F.sum()) / len(found) if len(found) else None
        chance_G = torch.nn.functional.pad(chance.double(), (0, n_atoms - len(chance)))
        recovered_G = (cosine_G >= self.config.recovered_at).double()
        series = {"cosine": cosine_G.sort(descending=True).values.tolist()}

        def mean(name: str, values_G: Tensor, unit: str, **fields: Any) -> EvalRecord:
            return self.mean_record(name, values_G.numpy(), unit, "planted atoms", subject.seed, **fields)

        return [
            mean("matched_cosine", cosine_G, "cosine", series=series),
            mean("matched_cosine_chance", chance_G, "cosine", note="random unit atoms"),
            mean("recovered_fraction", recovered_G, "fraction of planted atoms"),
            self.mean_record(
                "spurious_fraction",
                (~belongs_F[alive_F]).double().numpy(),
                "fraction of living features",
                "features",
                subject.seed,
            ),
            self.record("features_per_atom", per_atom, "features per atom", len(found), n_unit="planted atoms"),
        ]

    def _support(self, subject: Subject, counts: "_Counts") -> list[EvalRecord]:
        statistics: dict[str, Statistic] = {
            "support_precision": lambda t: t[:, 0] / t[:, 1],
            "support_recall": lambda t: t[:, 0] / t[:, 2],
            "support_f1": lambda t: 2 * t[:, 0] / (t[:, 1] + t[:, 2]),
        }
        auc_G = auc_F(counts.histogram_2GB[1], counts.histogram_2GB[0])
        auc_G = auc_G[torch.isfinite(auc_G)]
        return [
            *(
                self.sums_record(name, counts.sums, statistic, "fraction", subject.seed)
                for name, statistic in statistics.items()
            ),
            self.mean_record("support_auc", auc_G.double().numpy(), "probability", "planted atoms", subject.seed),
        ]

    def _tree(self, subject: Subject, counts: "_Counts") -> list[EvalRecord]:
        tree = counts.tree
        if tree is None:
            return []
        usual = tree.child_C >= MIN_TOKENS
        alone = tree.alone_C >= MIN_TOKENS
        absorbing = counts.paired.leans(tree.child, tree.parent) >= self.config.absorbs_at
        both = tree.feature_both_C.double()
        parent_given_child, child_given_parent = both / tree.feature_child_C, both / tree.feature_parent_C
        implied = (parent_given_child >= 0.9) & (child_given_parent < 0.9)
        figures = {
            "parent_recall_alone": (tree.alone_hit_C.double() / tree.alone_C)[alone],
            "parent_recall_with_child": (tree.child_hit_C.double() / tree.child_C)[usual],
            "absorption": (tree.taken_C.double() * absorbing / tree.child_C)[usual],
            "hierarchy_recovered": implied.double()[usual],
        }
        return [
            self.mean_record(
                name,
                values.numpy(),
                "fraction",
                "parent-child pairs",
                subject.seed,
                note=None if len(values) else NOT_RECOVERED,
            )
            for name, values in figures.items()
        ]


@dataclass(frozen=True)
class _Paired:
    """Which learned feature stands for which of the G planted atoms; -1 where there is none."""

    feature_G: Tensor
    atom_F: Tensor
    cosine_G: Tensor  # 0 where there is none
    learned_FD: Tensor  # pointing as their atoms do, where signs do not matter
    truth_GD: Tensor

    @staticmethod
    def of(learned_FD: Tensor, truth_GD: Tensor, signed: bool) -> "_Paired":
        match = hungarian_match(learned_FD, truth_GD, signed)
        if signed:
            opposed_P = (learned_FD[match.a_P] * truth_GD[match.b_P]).sum(1) < 0
            learned_FD = learned_FD.index_copy(0, match.a_P[opposed_P], -learned_FD[match.a_P[opposed_P]])
        feature_G = torch.full((len(truth_GD),), -1).index_put((match.b_P,), match.a_P)
        atom_F = torch.full((len(learned_FD),), -1).index_put((match.a_P,), match.b_P)
        cosine_G = torch.zeros(len(truth_GD), dtype=torch.float32).index_put((match.b_P,), match.cosine_P)
        return _Paired(feature_G, atom_F, cosine_G, learned_FD, truth_GD)

    def values(self, code: SparseCode) -> Tensor:
        """|value| of m(i) at each token, float32 [N, G]."""
        row_M, feature_M, value_M = (column.cpu() for column in code.flat())
        atom_M = self.atom_F[feature_M]
        kept = atom_M >= 0
        values_NG = torch.zeros(len(code), len(self.feature_G), dtype=torch.float32)
        return values_NG.index_put((row_M[kept], atom_M[kept]), value_M[kept].abs().float())

    def leans(self, child_C: Tensor, parent_C: Tensor) -> Tensor:
        """cos(atom of m(c), planted p) - cos(planted c, planted p)."""
        learned_CD = torch.nn.functional.normalize(self.learned_FD[self.feature_G[child_C]].float(), dim=1)
        extra_C = ((learned_CD - self.truth_GD[child_C]) * self.truth_GD[parent_C]).sum(1)
        return torch.where(self.feature_G[child_C] >= 0, extra_C, 0.0)


@dataclass
class _Tree:
    """Token counts for each of the C (child, parent) pairs of the truth."""

    child: Tensor
    parent: Tensor

    def __post_init__(self) -> None:
        zeros = torch.zeros(len(self.child), dtype=torch.int64)
        self.child_C, self.child_hit_C, self.taken_C = zeros.clone(), zeros.clone(), zeros.clone()
        self.alone_C, self.alone_hit_C = zeros.clone(), zeros.clone()
        self.feature_child_C, self.feature_parent_C, self.feature_both_C = zeros.clone(), zeros.clone(), zeros.clone()

    def add(self, truth_NG: Tensor, fires_NG: Tensor) -> None:
        """truth_NG, fires_NG: bool, what fires in truth and which m(i) fire."""
        true_child, true_parent = truth_NG[:, self.child], truth_NG[:, self.parent]
        child, parent = fires_NG[:, self.child], fires_NG[:, self.parent]
        has_child_NG = torch.zeros_like(truth_NG).index_add(1, self.parent, true_child)
        alone = true_parent & ~has_child_NG[:, self.parent]
        for total, counted in (
            (self.child_C, true_child),
            (self.child_hit_C, true_child & parent),
            (self.taken_C, true_child & ~parent & child),
            (self.alone_C, alone),
            (self.alone_hit_C, alone & parent),
            (self.feature_child_C, child),
            (self.feature_parent_C, parent),
            (self.feature_both_C, child & parent),
        ):
            total += counted.sum(0)


class _Counts:
    """What is counted while planted blocks pass; a block stands for a document in intervals."""

    def __init__(self, paired: _Paired, parent_G: Tensor) -> None:
        self.paired, n_atoms = paired, len(parent_G)
        self.sums = DocumentSums(3)  # both fire, m(i) fires, i fires
        self.fired_F = torch.zeros(len(paired.atom_F), dtype=torch.int64)
        self.histogram_2GB = torch.zeros(2, n_atoms, N_BINS + 1, dtype=torch.int64)  # [i fires], bin 0: silent
        child = torch.nonzero(parent_G != torch.arange(n_atoms))[:, 0]
        self.tree = _Tree(child, parent_G[child]) if len(child) else None

    def add(self, document_N: Tensor, truth_NG: Tensor, values_NG: Tensor) -> None:
        true_NG, fires_NG = truth_NG != 0, values_NG != 0
        columns = [(true_NG & fires_NG).sum(1), fires_NG.sum(1), true_NG.sum(1)]
        self.sums.add(document_N, torch.stack(columns, 1).double())
        bins_NG = torch.zeros_like(values_NG, dtype=torch.int64)
        bins_NG[fires_NG] = 1 + torch.from_numpy(bin_of(values_NG[fires_NG].numpy().astype(np.float64)))
        n_atoms, n_bins = self.histogram_2GB.shape[1:]
        place = (true_NG * n_atoms + torch.arange(n_atoms)) * n_bins + bins_NG
        self.histogram_2GB += torch.bincount(place.flatten(), minlength=self.histogram_2GB.numel()).view_as(
            self.histogram_2GB
        )
        if self.tree is not None:
            self.tree.add(true_NG, fires_NG)
