"""Feature choice: every feature takes its own share of the tokens.

    pre  = (x - b_dec) W_enc^T + b_enc                                                  [N, F]
    phase 1: code as mutual choice; densities rho_i are measured
    phase 2: code = ReLU(pre) at the m_i largest of column i, 0 elsewhere;  m_i = share_i * N, randomly rounded
    inference: code = pre where pre >= threshold_i, 0 elsewhere                          one threshold per feature
    recon = code W_dec + b_dec                                                           [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + aux_weight * AuxZipf

Shares: the Zipf-Mandelbrot law rho_(r) ~ (r + q)^-s fitted to the densities over their ranks r, without the tail
of rarest features, where it fails; evaluated at every feature's rank, at most 1, sum k (`budgets: zipf`); or k / F for
all (`uniform`). They are refitted every 100 steps of phase 1 and frozen at the switch, so that ranks cannot follow
the budgets that they set. AuxZipf is AuxK over features that fire less than `under_used` times their share, or are
dead. Thresholds are moved so that the number of pre-activations above them is the share of the rows:

    ln threshold_i += 0.1 min(10, min(1, m_i) (n_above_i / m_i - 1))     each step of phase 2, from phase 1's threshold

The bound keeps a burst of a rare feature from closing it, and leaves such a feature a little more than its share. On
held-out text other features may fire than on the rows of training: after 300,000 tokens the mean L0 was 5 % above k on
rows of training and 15 to 17 % on held-out text of the embedded host (analysis/LOG.md).

Source: Ayonrinde 2024, "Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders", arXiv
2411.02124. There is no public code: this is a reconstruction from the abstract and reviews. Established there: the
column budgets, the Zipf fit without its low end, aux_zipf_loss for under-utilised features, mutual choice first. Ours:
everything about how - random rounding, freezing, the threshold rule, `under_used`, the length of phase 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.auxiliary import rows_loss
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithK
from saetools.dictionaries.threshold import (
    ThresholdState,
    fresh_threshold_state,
    mutual_code,
    threshold_code,
    threshold_reference,
)
from saetools.errors import ConfigError
from saetools.functional.allocation import random_rounding, zipf_shares
from saetools.functional.losses import reconstruction
from saetools.functional.selection import column_topk_mask, masked_code
from saetools.functional.statistics import dead_F, density_F, firing_counts_F, least_positive
from saetools.kernels.plan import FusedBatch, FusedPlan
from saetools.rng import torch_seed

DECAY = 0.99
REFIT_STEPS = 100
GAIN, MAX_EXCESS = 0.1, 10
LEAST = torch.finfo(torch.float32).tiny
"""Of thresholds: that of a feature long dead sinks, and from 0 no factor would lift it once the feature fires again."""
START = 1e-3
"""Phase 2 begins with at least this threshold, in sqrt(V), where phase 1 left none (`mutual_fraction` 0)."""


@dataclass(frozen=True)
class FeatureChoiceState(ThresholdState):
    """Dead counters, phase 1's threshold, densities, shares and the thresholds of phase 2."""

    density_sum_F: Tensor  # float64; divided by density_weight: mean density over about 100 batches
    density_weight: Tensor  # float64
    share_F: Tensor  # float64: fraction of the tokens that each feature is to take; 0 before the first fit
    threshold_F: Tensor  # float64; 0 before phase 2

    def density(self) -> Tensor:
        """rho_F, the fraction of recent tokens on which each feature fired."""
        return self.density_sum_F / self.density_weight.clamp_min(torch.finfo(torch.float64).tiny)


class FeatureChoice(Dictionary, kind="feature_choice"):
    """Feature choice: every feature takes its own share of the tokens."""

    batch_coupled = True
    scaled_with_x = ("b_enc_F", "b_dec_D", "threshold_F")
    threshold_F: Tensor

    class Config(WithK, WithAuxK):
        """Settings of feature choice."""

        scheduled_by = ("mutual_fraction",)
        budgets: Literal["zipf", "uniform"] = Field("zipf", description="shares of the features")
        mutual_fraction: float = Field(0.5, ge=0, le=1, description="part of the run trained by mutual choice first")
        under_used: float = Field(0.5, ge=0, description="a feature below this part of its share is helped by AuxZipf")

        def validate_for(self, d_model: int) -> None:
            """Raise ConfigError where there are no densities to fit shares to."""
            super().validate_for(d_model)
            if self.budgets == "zipf" and not self.mutual_fraction:
                raise ConfigError(
                    "mutual_fraction is 0, but budgets: zipf are fitted to the densities of mutual choice. Give "
                    "mutual_fraction more than 0, or take budgets: uniform."
                )

    config: Config

    def __init__(self, config: Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        self.register_buffer("threshold_F", torch.zeros(config.n_features, dtype=torch.float32))

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        return threshold_code(self.pre(x_ND), self.threshold_F)

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        return threshold_reference(self.pre(x_ND), self.threshold_F)

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        assert isinstance(state, FeatureChoiceState)
        mutual = self._is_mutual(progress)
        state = self._with_shares(state, progress, mutual)
        pre_NF = self.pre(x_ND)
        code = mutual_code(pre_NF, self.config.k) if mutual else self._column_code(pre_NF, state, progress)
        residual_ND = target_ND - self.decode(code)
        losses = {"reconstruction": reconstruction(residual_ND, self.total_variance)}
        if self.config.aux_weight:
            helped_F = self._helped_F(state, progress)
            losses["aux_zipf"] = rows_loss(self, x_ND, residual_ND, helped_F, self.config.k_aux_for(self.d_model))
        after = self.next_state(state, code)
        assert isinstance(after, FeatureChoiceState)
        if mutual:
            after = after.observe(least_positive(code.values))
        else:
            after = moved_thresholds(after, ((pre_NF >= after.threshold_F) & (pre_NF > 0)).sum(0), len(pre_NF))
        return Terms(code, residual_ND, losses, after)

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        auxiliary = {"aux_zipf": self.config.aux_weight} if self.config.aux_weight else {}
        return {"reconstruction": 1.0} | auxiliary

    def initial_state(self) -> FeatureChoiceState:
        start = fresh_threshold_state(super().initial_state())
        zeros_F = torch.zeros(self.config.n_features, dtype=torch.float64, device=self.device)
        return FeatureChoiceState(
            **start.tensors(),
            density_sum_F=zeros_F,
            density_weight=torch.zeros_like(start.threshold_sum),
            share_F=zeros_F.clone(),
            threshold_F=zeros_F.clone(),
        )

    def next_state(self, state: State, code: SparseCode) -> State:
        after = super().next_state(state, code)
        assert isinstance(after, FeatureChoiceState)
        if not len(code):
            return after
        fired_F = density_F(firing_counts_F(code), len(code))
        return replace(
            after,
            density_sum_F=DECAY * after.density_sum_F + (1 - DECAY) * fired_F,
            density_weight=DECAY * after.density_weight + (1 - DECAY),
        )

    def absorb_(self, state: State) -> None:
        assert isinstance(state, FeatureChoiceState)
        in_phase_2 = state.threshold_F > 0
        self.threshold_F.copy_(torch.where(in_phase_2, state.threshold_F, state.threshold()))

    def fused_plan(self) -> FusedPlan:
        return FusedPlan("per_feature", self.config.k, **self.config.fused_auxiliary(self.d_model, "aux_zipf"))

    def fused_batch(
        self, x_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> tuple[State, FusedBatch]:
        assert isinstance(state, FeatureChoiceState)
        mutual = self._is_mutual(progress)
        state = self._with_shares(state, progress, mutual)
        helped_A = self._helped_F(state, progress).nonzero()[:, 0]
        if mutual:
            return state, FusedBatch("global", helped_A)
        budget_F = self._budget_F(state, progress, len(x_ND))
        return state, FusedBatch("per_feature", helped_A, budget_F=budget_F, threshold_F=state.threshold_F)

    def fused_state(self, state: State, code: SparseCode, reached_F: Tensor | None) -> State:
        after = self.next_state(state, code)
        assert isinstance(after, FeatureChoiceState)
        if reached_F is None:
            return after.observe(least_positive(code.values))
        return moved_thresholds(after, reached_F, len(code))

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=40, k=4),
            cls.configure(n_features=40, k=4, mutual_fraction=1.0),
            cls.configure(n_features=24, k=3, mutual_fraction=0.0, budgets="uniform", aux_weight=0),
        ]

    def _with_shares(self, state: FeatureChoiceState, progress: Progress, mutual: bool) -> FeatureChoiceState:
        """The state with shares fitted anew where that is due: in phase 1, and before the first step of phase 2."""
        started = bool((state.threshold_F > 0).any())
        if mutual and started:  # a run made longer goes back to phase 1
            state = replace(state, threshold_F=torch.zeros_like(state.threshold_F))
        if not (progress.step % REFIT_STEPS == REFIT_STEPS - 1 if mutual else not started):
            return state
        k, n_features = self.config.k, self.config.n_features
        if self.config.budgets == "uniform":
            share_F = torch.full_like(state.share_F, k / n_features)
        else:
            n_rows = progress.n_tokens // max(progress.n_steps, 1)
            n_batches = float(state.density_weight) / (1 - DECAY)  # 100, or those that there were
            share_F = zipf_shares(state.density(), k, n_effective=round(n_rows * n_batches))
        if mutual:
            return replace(state, share_F=share_F)
        start = state.threshold().clamp_min(START * float(self.total_variance) ** 0.5)
        return replace(state, share_F=share_F, threshold_F=start.expand(n_features).clone())

    def _is_mutual(self, progress: Progress) -> bool:
        """Whether this step is of phase 1."""
        return progress.step < self.config.mutual_fraction * progress.n_steps

    def _helped_F(self, state: FeatureChoiceState, progress: Progress) -> Tensor:
        """The features of AuxZipf: the dead, and those that fire much less than their share."""
        dead = dead_F(state.tokens_since_fired_F, progress.dead_after_tokens)
        return dead | (state.density() < self.config.under_used * state.share_F)

    def _budget_F(self, state: FeatureChoiceState, progress: Progress, n_rows: int) -> Tensor:
        """How many rows of this batch each feature takes."""
        generator = torch.Generator().manual_seed(torch_seed(self.seed, "feature_choice", progress.step))
        return random_rounding(state.share_F * n_rows, generator).clamp_max(n_rows)

    def _column_code(self, pre_NF: Tensor, state: FeatureChoiceState, progress: Progress) -> SparseCode:
        budget_F = self._budget_F(state, progress, len(pre_NF))
        values_M, indices_M, offsets_N1 = masked_code(pre_NF, column_topk_mask(pre_NF, budget_F))
        return SparseCode(values_M, indices_M, self.config.n_features, offsets_N1)


@torch.no_grad()
def moved_thresholds(state: FeatureChoiceState, above_F: Tensor, n_rows: int) -> FeatureChoiceState:
    """ln threshold += GAIN min(MAX_EXCESS, min(1, m) (n_above / m - 1)), m = share * N.

    Stationary where n_above is m on average, as far as no batch has more than MAX_EXCESS max(1, m) beyond m.
    """
    budget_F = state.share_F * n_rows
    excess_F = (above_F - budget_F) / budget_F.clamp_min(1)
    moved_F = state.threshold_F * (GAIN * excess_F.clamp_max(MAX_EXCESS)).exp()
    return replace(state, threshold_F=moved_F.clamp_min(LEAST))
