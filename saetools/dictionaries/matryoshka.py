"""Matryoshka: nested groups of features, each prefix of which must reconstruct, over mutual choice.

    code    as mutual choice: the k * N largest of the batch in training, above a learnt threshold at inference
    recon_g = code[: end_g] W_dec[: end_g] + b_dec        for nested prefixes of end_1 < ... < end_G = F features
    loss    = mean over g of ||target - recon_g||^2 / V + aux_weight * AuxK(residual of recon_G)

Early features must be useful without the late ones, which keeps them general (less absorption and splitting).

Source: Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", arXiv 2503.17547.
Differs from it in: the mean over groups (paper: the sum) keeps the weight of AuxK what it is elsewhere; their code
takes the mean too, over the G groups and one more term, for the bias alone, which we leave out: it trains b_dec and no
feature; inference by the learnt threshold; AuxK as in TopK.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.auxiliary import auxk_term, auxk_weight
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithK
from saetools.dictionaries.threshold import BatchThreshold, mutual_code
from saetools.errors import ConfigError
from saetools.functional.losses import reconstruction
from saetools.kernels.plan import FusedPlan


class Matryoshka(BatchThreshold, kind="matryoshka"):
    """Matryoshka: nested groups of features, each prefix of which must reconstruct, over mutual choice."""

    class Config(WithK, WithAuxK):
        """Settings of Matryoshka."""

        group_fractions: tuple[float, ...] = Field(
            (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2), description="share of F of each group, general to special; sum 1"
        )

        def group_ends(self) -> tuple[int, ...]:
            """The number of features in each prefix."""
            return tuple(round(share * self.n_features) for share in accumulate(self.group_fractions))

        def validate_for(self, d_model: int) -> None:
            super().validate_for(d_model)
            ends = (0, *self.group_ends())
            if ends[-1] != self.n_features or any(later <= earlier for earlier, later in pairwise(ends)):
                raise ConfigError(
                    f"group_fractions {self.group_fractions} give prefixes of {ends[1:]} features; they must grow and "
                    f"end at n_features = {self.n_features}. Use positive fractions that sum to 1."
                )

    config: Config

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        code = mutual_code(self.pre(x_ND), self.config.k)
        residuals = [target_ND - self.decode(prefix) for prefix in self.prefixes(code)]
        errors = torch.stack([reconstruction(residual, self.total_variance) for residual in residuals])
        losses = {"nested_reconstruction": errors.mean()}
        losses |= auxk_term(self, x_ND, residuals[-1], state, progress)
        return Terms(code, residuals[-1], losses, self.next_state(state, code))

    def prefixes(self, code: SparseCode) -> list[SparseCode]:
        """The code with the features of the first group alone, of the first two, ..., of all."""
        return [replace(code, values=code.values * (code.indices < end)) for end in self.config.group_ends()]

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        return {"nested_reconstruction": 1.0} | auxk_weight(self.config)

    def fused_plan(self) -> FusedPlan:
        auxiliary, ends = self.config.fused_auxiliary(self.d_model), self.config.group_ends()
        return FusedPlan("global", self.config.k, main="nested_reconstruction", groups=ends, **auxiliary)

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=40, k=4, group_fractions=(0.25, 0.25, 0.5)),
            cls.configure(n_features=32, k=6, aux_weight=0),
        ]
