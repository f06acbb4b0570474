"""TopK: each row keeps its k largest pre-activations.

    pre  = (x - b_dec) W_enc^T + b_enc          [N, F]
    code = ReLU(pre) at the k largest of each row, 0 elsewhere
    recon = code W_dec + b_dec                   [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + aux_weight * AuxK
           + multi_weight * ||target - recon'||^2 / V, recon' with the 4 k largest (MultiTopK)

With `inference: threshold`, encoding keeps every pre-activation of at least a learnt threshold instead: the mean,
over about the last 10 batches, of the value that exactly as many pre-activations of the batch reach as fired in it.
Held-out rows then have the training L0 on average and each its own number of features.

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093, sections 2.3-2.4, 5.3
(MultiTopK) and appendix A.2 (AuxK). Differs from it in: V is the total variance of the calibration rows (theirs: of
a sample, per element); AuxK decodes without bias, is normalised by the residual's variance in the batch and is scaled
by min(n_dead / k_aux, 1); a feature fires when its value is not 0 (theirs: above 1e-3); ties go to the lowest index.
The threshold is ours: dictionary_learning averages the smallest value kept, which does not match L0 for a choice made
per row.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.auxiliary import standard_terms, standard_weights
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithK
from saetools.dictionaries.threshold import ThresholdState, fresh_threshold_state, threshold_code, threshold_reference
from saetools.functional.losses import reconstruction
from saetools.functional.selection import nth_largest, topk_code, topk_mask_reference
from saetools.functional.statistics import l0_N
from saetools.kernels.plan import FusedPlan

MULTI = 4
"""MultiTopK also reconstructs with this many times k."""


class TopK(Dictionary, kind="topk"):
    """TopK: each row keeps its k largest pre-activations."""

    threshold: Tensor

    class Config(WithK, WithAuxK):
        """Settings of TopK."""

        multi_weight: float = Field(0.0, ge=0, description="weight of the loss at 4 k features (Gao et al.: 1/8)")
        inference: Literal["topk", "threshold"] = Field("topk", description="k per row, or all above a threshold")

    config: Config

    def __init__(self, config: Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        if config.inference == "threshold":
            self.register_buffer("threshold", torch.zeros((), dtype=torch.float32))
            self.scaled_with_x = (*self.scaled_with_x, "threshold")

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        if self.config.inference == "threshold":
            return threshold_code(self.pre(x_ND), self.threshold)
        return self._select(self.pre(x_ND), self.config.k)

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        pre_NF = self.pre(x_ND)
        if self.config.inference == "threshold":
            return threshold_reference(pre_NF, self.threshold)
        return pre_NF.relu() * topk_mask_reference(pre_NF, self.config.k)

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        pre_NF = self.pre(x_ND)
        terms = standard_terms(self, self._select(pre_NF, self.config.k), x_ND, target_ND, state, progress)
        if self.config.multi_weight:
            wide = self._select(pre_NF, min(MULTI * self.config.k, self.config.n_features))
            loss = reconstruction(target_ND - self.decode(wide), self.total_variance)
            terms = replace(terms, losses=terms.losses | {"multi_topk": loss})
        if isinstance(terms.new_state, ThresholdState):
            reached = nth_largest(pre_NF, int(l0_N(terms.code).sum()))
            terms = replace(terms, new_state=terms.new_state.observe(reached))
        return terms

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        multi = {"multi_topk": self.config.multi_weight} if self.config.multi_weight else {}
        return standard_weights(self.config) | multi

    def initial_state(self) -> State:
        state = super().initial_state()
        return fresh_threshold_state(state) if self.config.inference == "threshold" else state

    def absorb_(self, state: State) -> None:
        if isinstance(state, ThresholdState):
            self.threshold.copy_(state.threshold())

    def fused_plan(self) -> FusedPlan | None:
        if self.config.inference == "threshold":
            return None  # what the threshold is learnt from, all pre-activations, does not exist in the fused step
        multi_k = min(MULTI * self.config.k, self.config.n_features) if self.config.multi_weight else 0
        return FusedPlan("per_row", self.config.k, multi_k=multi_k, **self.config.fused_auxiliary(self.d_model))

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=40, k=4),
            cls.configure(n_features=24, k=24, aux_weight=0.0),
            cls.configure(n_features=64, k=1, k_aux=5),
            cls.configure(n_features=40, k=4, multi_weight=0.125),
            cls.configure(n_features=40, k=4, multi_weight=0.125, inference="threshold"),
        ]

    def _select(self, pre_NF: Tensor, k: int) -> SparseCode:
        values_NK, indices_NK = topk_code(pre_NF, k)
        return SparseCode(values_NK, indices_NK, self.config.n_features)
