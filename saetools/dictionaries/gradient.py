"""Gradient (g-SAE): which features a row keeps depends on how much the model's loss depends on them.

    pre   = (x - b_dec) W_enc^T + b_enc                                            [N, F]
    g     = grad / gradient_rms    grad = dL/dx: field `grad` of the stream, raw; gradient_rms: its calibration's
    score = ReLU(pre) (1 + beta |g W_dec^T|)         or, with `score: product`, ReLU(pre) |g W_dec^T|
    code  = ReLU(pre) at the k largest scores > 0 of each row, 0 elsewhere          never weighted by the gradient
    recon = code W_dec + b_dec                                                      [N, D], unit rows of W_dec
    loss  = ||target - recon||^2 / V + aux_weight * AuxK

ReLU(pre_i) <dL/dx, d_i> is the first-order change of the loss when feature i is removed. Scores are constants for
autograd. With `product` a row whose gradient is 0, as that of the last token of a window, has no code. Streams carry
gradients where `activations.gradients` is true, and rows files that have a `grad`; L is then the sum of the losses of
all later tokens, not their mean, so that |g| does not depend on the length of a window.
Encoding uses gradients where they are given (`encode(x, {"grad": dL/dx})`, raw) and is TopK where they are not. With
beta = 0 it is TopK; so it is on rows without gradients, which is said once and recorded in `gradient_share`, the
fraction of the rows trained on that came with gradients.

Source: Olmo et al. 2024, "Features that Make a Difference: Leveraging Gradients for Improved Dictionary Learning",
arXiv 2411.10397. There is no public code and the body was not at hand: this is a reconstruction. Established there:
TopK whose selection has a term in z * |W_dec^T grad|, weighted by beta. Ours: the sum 1 + beta |.| (it keeps
activation as the base), the normalisation by RMS over entries and rows (so that beta has no unit), the default of beta.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.auxiliary import standard_terms, standard_weights
from saetools.dictionaries.base import Calibration, Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithK
from saetools.errors import MismatchError
from saetools.functional.selection import topk_indices, topk_mask_reference
from saetools.kernels.plan import FusedBatch, FusedPlan
from saetools.kernels.score import Score

FIELD = "grad"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GradientState(State):
    """Dead counters, and how many rows had gradients."""

    n_rows: Tensor  # int64
    n_rows_with_gradient: Tensor  # int64

    def observe(self, n_rows: int, have_gradients: bool) -> "GradientState":
        """The state after a batch."""
        return replace(
            self,
            n_rows=self.n_rows + n_rows,
            n_rows_with_gradient=self.n_rows_with_gradient + (n_rows if have_gradients else 0),
        )


class Gradient(Dictionary, kind="gradient"):
    """Gradient (g-SAE): which features a row keeps depends on how much the model's loss depends on them."""

    gradient_rms: Tensor
    gradient_share: Tensor

    class Config(WithK, WithAuxK):
        """Settings of the gradient dictionary."""

        beta: float = Field(1.0, ge=0, description="weight of the gradient in the score; 0 is TopK")
        score: Literal["weighted", "product"] = Field(
            "weighted", description="activation (1 + beta |.|), or the product"
        )

    config: Config

    def __init__(self, config: Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        self.register_buffer("gradient_rms", torch.ones((), dtype=torch.float64))
        self.register_buffer("gradient_share", torch.zeros((), dtype=torch.float64))

    @property
    def selects_by_gradient(self) -> bool:
        """Whether gradients matter at all; otherwise it is TopK, and of the stream's gradients nothing is kept."""
        return self.config.beta > 0 or self.config.score == "product"

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        return self._select(self.pre(x_ND), self._gradient(x_ND, fields))

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        pre_NF = self.pre(x_ND)
        scores_NF = self._scores(pre_NF, self._gradient(x_ND, fields or {}))
        return pre_NF.relu() * (topk_mask_reference(scores_NF, self.config.k) & (scores_NF > 0))

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        assert isinstance(state, GradientState)
        grad_ND = self._gradient(x_ND, fields)
        state = self._observed(state, len(x_ND), grad_ND)
        code = self._select(self.pre(x_ND), grad_ND)
        return standard_terms(self, code, x_ND, target_ND, state, progress)

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        return standard_weights(self.config)

    def initial_state(self) -> GradientState:
        since_F = super().initial_state().tokens_since_fired_F
        return GradientState(since_F, since_F.new_zeros(()), since_F.new_zeros(()))

    def take_constants_(self, calibration: Calibration) -> None:
        super().take_constants_(calibration)
        if calibration.gradient_rms:
            self.gradient_rms.fill_(calibration.gradient_rms)

    def starting_recon(self, x_ND: Tensor) -> Tensor:
        return self.decode(self.encode(x_ND))  # chosen as where there are no gradients

    def absorb_(self, state: State) -> None:
        assert isinstance(state, GradientState)
        self.gradient_share.copy_(state.n_rows_with_gradient / state.n_rows.clamp_min(1))

    def fused_plan(self) -> FusedPlan:
        return FusedPlan("per_row", self.config.k, **self.config.fused_auxiliary(self.d_model))

    def fused_batch(
        self, x_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> tuple[State, FusedBatch]:
        assert isinstance(state, GradientState)
        grad_ND = self._gradient(x_ND, fields)
        state = self._observed(state, len(x_ND), grad_ND)
        _, batch = super().fused_batch(x_ND, fields, state, progress)
        if grad_ND is None:
            return state, batch
        base = 0.0 if self.config.score == "product" else 1.0
        beta = 1.0 if self.config.score == "product" else self.config.beta
        return state, replace(batch, score=Score("gradient", grad_ND, self.W_dec_FD.detach(), beta, base))

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=40, k=4),
            cls.configure(n_features=40, k=4, beta=0),
            cls.configure(n_features=24, k=3, score="product", aux_weight=0),
        ]

    def _observed(self, state: GradientState, n_rows: int, grad_ND: Tensor | None) -> GradientState:
        """The state with what a batch's gradients add to it; says once where there are none."""
        if not self.selects_by_gradient:
            return state
        if grad_ND is None:
            warn_once()
        return state.observe(n_rows, grad_ND is not None)

    def _gradient(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> Tensor | None:
        """g of each row, in the dtype of the rows; None where there is no gradient, or where it does not matter."""
        grad_ND = fields.get(FIELD)
        if grad_ND is None or not self.selects_by_gradient:
            return None
        if grad_ND.shape != x_ND.shape:
            raise MismatchError(
                f"the field `{FIELD}` has shape {tuple(grad_ND.shape)}, the rows {tuple(x_ND.shape)}. Give dL/dx of "
                "each row."
            )
        return grad_ND.to(x_ND.dtype) / self.gradient_rms.to(x_ND.dtype)

    @torch.no_grad()
    def _scores(self, pre_NF: Tensor, grad_ND: Tensor | None) -> Tensor:
        active_NF = pre_NF.relu()
        if grad_ND is None:
            return active_NF
        effects_NF = (grad_ND @ self.W_dec_FD.T).abs()
        return active_NF * (effects_NF if self.config.score == "product" else 1 + self.config.beta * effects_NF)

    def _select(self, pre_NF: Tensor, grad_ND: Tensor | None) -> SparseCode:
        scores_NF = self._scores(pre_NF, grad_ND)
        indices_NK = topk_indices(scores_NF, self.config.k)
        chosen_NK = ~(scores_NF.gather(1, indices_NK) <= 0)  # of a score that is no number too, so that it shows
        values_NK = pre_NF.gather(1, indices_NK).relu().where(chosen_NK, 0)
        return SparseCode(values_NK, indices_NK.where(values_NK > 0, 0).int(), self.config.n_features)


@cache
def warn_once() -> None:
    """Say, once a process, that there are no gradients."""
    log.warning(
        "the rows carry no field `%s`: the gradient dictionary trains as TopK (beta = 0). Set activations.gradients to "
        "true (and harvest with it), or give a rows file with `grad`.",
        FIELD,
    )
