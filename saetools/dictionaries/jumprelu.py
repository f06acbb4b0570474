"""JumpReLU: each feature has its own learnt threshold; the number of active features is penalised directly.

    pre  = (x - b_dec) W_enc^T + b_enc                              [N, F]
    code = pre where pre > threshold, 0 elsewhere                   threshold >= 0, one per feature
    recon = code W_dec + b_dec                                      [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + l0_weight * warmup * L0 + aux_weight * AuxK

Thresholds learn through straight-through estimates (functional/straight_through.py). Bandwidth and first threshold
are given for rows with E||x||^2 = 1, as published, and multiplied by sqrt(D) for ours (E||x||^2 = D); l0_weight needs
no conversion, since the reconstruction is divided by V.

Source: Rajamanoharan et al. 2024, "Jumping Ahead", arXiv 2407.14435, section 3; Gemma Scope (arXiv 2408.05147) for
the warm-up. Differs from them in: the threshold itself is the parameter and is clamped at 0 after each step (theirs:
its logarithm); tied start and AuxK as everywhere here.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt

import torch
from pydantic import Field
from torch import Tensor, nn

from saetools.dictionaries.auxiliary import dense_terms, standard_weights
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithWarmup
from saetools.functional.losses import mean_of_rows
from saetools.functional.straight_through import jumprelu, step


class JumpReLU(Dictionary, kind="jumprelu"):
    """JumpReLU: each feature has its own learnt threshold; the number of active features is penalised directly."""

    scaled_with_x = ("b_enc_F", "b_dec_D", "threshold_F")

    class Config(WithWarmup, WithAuxK):
        """Settings of JumpReLU."""

        l0_weight: float = Field(1e-3, ge=0, description="weight of the number of active features per row")
        bandwidth: float = Field(1e-3, gt=0, description="width of the estimator's window, for E||x||^2 = 1")
        first_threshold: float = Field(1e-3, gt=0, description="threshold before training, for E||x||^2 = 1")

    config: Config

    def __init__(self, config: Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        start = config.first_threshold * sqrt(d_model)
        self.threshold_F = nn.Parameter(torch.full((config.n_features,), start, dtype=torch.float32))

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        return SparseCode.from_dense(self.encode_reference(x_ND))

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        pre_NF = self.pre(x_ND)
        return pre_NF.relu() * (pre_NF > self.threshold_F)

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        """Dense on purpose: pre-activations just below their threshold pass gradients to it, though their code is 0."""
        pre_NF, bandwidth = self.pre(x_ND), self.config.bandwidth * sqrt(self.d_model)
        code_NF = jumprelu(pre_NF, self.threshold_F, bandwidth)
        terms = dense_terms(self, code_NF, x_ND, target_ND, state, progress, zeros_learn=True)
        l0 = mean_of_rows(step(pre_NF, self.threshold_F, bandwidth).sum(1))
        return replace(terms, losses=terms.losses | {"l0": l0})

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        l0_weight = self.config.l0_weight * progress.ramp(self.config.warmup_fraction)
        return standard_weights(self.config) | {"l0": l0_weight}

    @torch.no_grad()
    def constrain_(self) -> None:
        super().constrain_()
        self.threshold_F.clamp_min_(0)

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=40, bandwidth=0.1, first_threshold=0.05),
            cls.configure(n_features=24, bandwidth=0.2, l0_weight=0.01, aux_weight=0),
        ]
