"""P-anneal: ReLU with a penalty sum code^p whose p falls from 1 towards 0 while training.

    pre  = (x - b_dec) W_enc^T + b_enc                  [N, F]
    code = ReLU(pre)
    recon = code W_dec + b_dec                           [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + l1_weight * warmup * c_p sum_i (code_i / sqrt(V))^p + aux_weight * AuxK

p falls in equal steps. At each, c_p is multiplied by E[sum code^p before] / E[sum code^p after], measured over about
the last 10 batches, so that the penalty goes on with the size it had: c_1 = 1, and l1_weight means what it does for
relu_l1. The state knows the p that c_p is for: a step that is skipped as not finite leaves both to the next. Where p
does not fall by one step alone (a run made longer goes back), the ratio is that of the batch at which it changes.

Source: Karvonen et al. 2024, "Measuring Progress in Dictionary Learning for Language Model Interpretability with
Board Game Models", arXiv 2408.00113; saprmarks/dictionary_learning for the rescaling. Differs from them
in: schedules in fractions of the run; a running mean in place of a queue of batches; AuxK in place of resampling.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isclose

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.auxiliary import dense_terms, standard_weights
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithL1
from saetools.functional.losses import power_penalty

DECAY = 0.9


@dataclass(frozen=True)
class AnnealState(State):
    """Dead counters, p and its coefficient c_p, and running sums of the penalty at this p and at the next."""

    power: Tensor  # float64
    coefficient: Tensor  # float64
    penalty_sum: Tensor  # float64; both sums have the same weights, which cancel in their ratio
    next_penalty_sum: Tensor  # float64

    def moved_on(self, power: float) -> "AnnealState":
        """The state when p takes the value of which the second sum is."""
        known = self.next_penalty_sum > 0
        ratio = torch.where(known, self.penalty_sum / self.next_penalty_sum.where(known, 1), 1)
        return replace(
            self,
            power=torch.full_like(self.power, power),
            coefficient=self.coefficient * ratio,
            penalty_sum=torch.zeros_like(self.penalty_sum),
            next_penalty_sum=torch.zeros_like(self.penalty_sum),
        )

    def observed(self, penalty: Tensor, next_penalty: Tensor) -> "AnnealState":
        """The state after a batch with these penalties."""
        return replace(
            self,
            penalty_sum=DECAY * self.penalty_sum + penalty.double(),
            next_penalty_sum=DECAY * self.next_penalty_sum + next_penalty.double(),
        )


class PAnneal(Dictionary, kind="p_anneal"):
    """P-anneal: ReLU with a penalty sum code^p whose p falls from 1 towards 0 while training."""

    class Config(WithL1, WithAuxK):
        """Settings of p-anneal."""

        scheduled_by = (*WithL1.scheduled_by, "p_end")
        p_end: float = Field(0.2, gt=0, le=1, description="last p")
        n_updates: int = Field(10, gt=0, description="equal steps in which p falls")
        anneal_start: float = Field(0.1, ge=0, lt=1, description="fraction of the run at which p begins to fall")

        def power(self, step: int, n_steps: int) -> float:
            """p at a step: 1 until anneal_start, then down to p_end in n_updates steps that fill the rest."""
            share = (step / n_steps - self.anneal_start) / (1 - self.anneal_start)
            done = min(self.n_updates, max(0, int(share * (self.n_updates + 1))))
            return 1 - (1 - self.p_end) * done / self.n_updates

        def next_power(self, power: float) -> float:
            """The p that follows."""
            return max(self.p_end, power - (1 - self.p_end) / self.n_updates)

    config: Config

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        return SparseCode.from_dense(self.encode_reference(x_ND))

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.pre(x_ND).relu()

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        assert isinstance(state, AnnealState)
        code_NF = self.encode_reference(x_ND)
        power, last = self.config.power(progress.step, progress.n_steps), float(state.power)

        def penalty(p: float) -> Tensor:
            return power_penalty(code_NF, len(x_ND), self.total_variance, p)

        if power != last:
            if not isclose(power, self.config.next_power(last)):
                state = replace(state, penalty_sum=penalty(last).detach(), next_penalty_sum=penalty(power).detach())
            state = state.moved_on(power)
        terms = dense_terms(self, code_NF, x_ND, target_ND, state, progress)
        now = penalty(power)
        with torch.no_grad():
            following = penalty(self.config.next_power(power))
        assert isinstance(terms.new_state, AnnealState)
        losses = terms.losses | {"sparsity": now * state.coefficient.to(now.dtype)}
        return replace(terms, losses=losses, new_state=terms.new_state.observed(now.detach(), following))

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        return standard_weights(self.config) | {"sparsity": self.config.l1_weight_at(progress)}

    def initial_state(self) -> AnnealState:
        since_F = super().initial_state().tokens_since_fired_F
        one = torch.ones((), dtype=torch.float64, device=since_F.device)
        return AnnealState(since_F, one, one.clone(), torch.zeros_like(one), torch.zeros_like(one))

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [cls.configure(n_features=40, l1_weight=0.02), cls.configure(n_features=24, p_end=0.5, aux_weight=0)]
