"""ITDA, inference-time decomposition of activations: atoms are data rows, codes are found by matching pursuit.

    code, recon = k steps of matching pursuit of x over the atoms in use, by |correlation|, atoms selectable again;
                  with `coefficients: least_squares`, of orthogonal matching pursuit
    a row is novel where cos(x, recon) < min_cosine, that is where its error 2 (1 - cos) / D is above threshold
    atoms <- atoms + x / ||x|| of the novel rows, until there are n_features                        [F, D]

One pass over a stream of rows, no gradient. Rows are read in batches: each is judged by the dictionary before its
batch, then in two rounds by the atoms that its own batch adds. The first round adds rows that several novel rows are
near to (|cos| >= min_cosine), the most frequent first; what these explain is novel no more; the second round adds the
rest, of rows near each other one. So the start is made by frequent directions, and no batch adds twins. When
n_features atoms are in use the dictionary is full: nothing is added or replaced any more, and construction ends.

W_dec_FD has n_atoms unit rows, then zero rows, which are never selected. where_F2 is (document, position) of the row
that became each atom, (-1, -1) where unused. b_dec is zero: ITDA has no bias. Codes are signed, in units of x.

Source: Leask, Nanda, Al Moubayed 2025, "Inference-Time Decomposition of Activations", arXiv 2505.17769. Differs from
it in: the threshold given as a cosine (an error above 2 / D never occurs in pursuit, so a fixed one may be void); rows
judged anew within their batch (theirs adds near-duplicates); a start from frequent directions instead of D rows that
are most often exactly equal, which are padding (rows here are kept tokens only); rows scaled by one constant, which
changes no choice; the option of least squares (their first version's, and their paper's Algorithm 1).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.base import Calibration, Dictionary, SparseCode, State, Terms
from saetools.dictionaries.settings import WithK
from saetools.functional.directions import cosine_N, direction_error, leaders
from saetools.functional.linear import scatter_rows
from saetools.functional.losses import reconstruction
from saetools.functional.selection import merged_slots
from saetools.kernels.gram import Gram, most_atoms
from saetools.kernels.matching_pursuit import matching_pursuit
from saetools.kernels.omp import omp


class ITDA(Dictionary, kind="itda"):
    """ITDA: atoms are data rows that those before them do not explain; coded by matching pursuit."""

    trained_by = "construction"
    has_encoder = False
    signed = True
    scaled_with_x = ("b_dec_D",)
    n_atoms: Tensor
    where_F2: Tensor
    block_F: Tensor

    class Config(WithK):
        """Settings of ITDA; k is the number of steps, n_features the most atoms."""

        coefficients: Literal["pursuit", "least_squares"] = Field(
            "pursuit", description="as each step found them, or fitted anew after each step (OMP)"
        )
        min_cosine: float = Field(0.9, gt=0, lt=1, description="a row explained to a smaller cosine becomes an atom")

    config: Config

    def __init__(self, config: Dictionary.Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        self.requires_grad_(False)
        self.W_dec_FD.zero_()
        self.register_buffer("n_atoms", torch.zeros((), dtype=torch.int64))
        self.register_buffer("where_F2", torch.full((config.n_features, 2), -1))
        self.register_buffer("block_F", torch.full((config.n_features,), -1))  # atoms of one block were added together
        self._extended: Gram | None = None

    @property
    def full(self) -> bool:
        """Whether all n_features atoms are in use."""
        return int(self.n_atoms) == self.config.n_features

    def update(self, x_ND: Tensor, where_N2: Tensor, state: State) -> Terms:
        """Add the novel rows of a batch as atoms, in place.

        where_N2: (document, position) of each row. The code, residual and losses are those of the dictionary before.
        """
        values_NK, indices_NK, residual_ND = self._pursue(x_ND, gram=self._gram())
        cosines_N = cosine_N(x_ND, x_ND - residual_ND)
        n_before = int(self.n_atoms)
        novel = (cosines_N < self.config.min_cosine).nonzero()[:, 0]
        novel = self._add_leaders_(x_ND, where_N2, novel, least=2)
        self._add_leaders_(x_ND, where_N2, novel, least=1)
        code = SparseCode(merged_slots(values_NK, indices_NK), indices_NK, self.config.n_features)
        state = self.next_state(state, code)
        since_F = state.tokens_since_fired_F.clone()
        since_F[n_before : int(self.n_atoms)] = 0
        losses = {
            "reconstruction": reconstruction(residual_ND, self.total_variance),
            "direction": direction_error(cosines_N, self.d_model).mean(),
        }
        return Terms(code, residual_ND, losses, replace(state, tokens_since_fired_F=since_F))

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        pays = int(self.n_atoms) < len(x_ND) * self.config.k  # few rows are coded sooner than it is built
        values_NK, indices_NK, _ = self._pursue(x_ND, gram=self._gram() if pays else None)
        return SparseCode(merged_slots(values_NK, indices_NK), indices_NK, self.config.n_features)

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        values_NK, indices_NK, _ = self._pursue(x_ND, impl="reference")
        return scatter_rows(values_NK, indices_NK, self.config.n_features)

    def calibrate_(self, calibration: Calibration) -> None:
        self.take_constants_(calibration)

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=24, k=4),
            cls.configure(n_features=80, k=3, min_cosine=0.8),
            cls.configure(n_features=24, k=4, coefficients="least_squares"),
        ]

    def _pursue(self, x_ND: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        atoms = self.W_dec_FD[: max(1, int(self.n_atoms))]  # the first row is zero, so not selected, where none is used
        if self.config.coefficients == "least_squares":
            return omp(x_ND - self.b_dec_D, atoms, min(self.config.k, len(atoms)), **options)
        return matching_pursuit(x_ND - self.b_dec_D, atoms, self.config.k, rule="absolute", **options)

    @torch.no_grad()
    def _add_leaders_(self, x_ND: Tensor, where_N2: Tensor, novel: Tensor, least: int) -> Tensor:
        """Add leaders of the novel rows, as many as there is room for; the rows that are still novel then."""
        n, block = int(self.n_atoms), int(self.block_F.max()) + 1
        chosen = novel[leaders(x_ND[novel], self.config.min_cosine, least)][: self.config.n_features - n]
        if not len(chosen):
            return novel
        added = slice(n, n + len(chosen))
        self.W_dec_FD[added] = torch.nn.functional.normalize(x_ND[chosen], dim=1)
        self.where_F2[added] = where_N2[chosen].to(self.where_F2)
        self.block_F[added] = block
        self.n_atoms += len(chosen)
        left_ND = self._pursue(x_ND[novel], gram=self._gram())[2]
        return novel[cosine_N(x_ND[novel], x_ND[novel] - left_ND) < self.config.min_cosine]

    @torch.no_grad()
    def _gram(self) -> Gram | None:
        """The Gram matrix of the atoms in use, kept and extended by the blocks that were added since; None where there
        are none or it would not fit. Where weights were loaded, it is extended by the blocks of before: to the same
        bits, which products of other shapes would not give."""
        atoms, kept = self.W_dec_FD[: int(self.n_atoms)], self._extended
        if not 0 < len(atoms) <= most_atoms():
            self._extended = None
            return None
        if kept is None or not _same(kept.W_FD, atoms[: kept.n_atoms]):
            kept = Gram(atoms[:0], min(self.config.n_features, most_atoms()))
        blocks_A = self.block_F[kept.n_atoms : len(atoms)]
        for block in atoms[kept.n_atoms :].split(blocks_A.unique_consecutive(return_counts=True)[1].tolist()):
            kept.extend_(block)
        self._extended = kept
        return kept


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
