"""A threshold learnt while training, that takes the place of a selection that inference may not make."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary, SparseCode, State
from saetools.functional.selection import batch_topk_code, masked_code
from saetools.functional.statistics import least_positive

DECAY = 0.9
"""Short: one batch alone gives the threshold to a per cent or so, and a mean over many would be of older weights."""
AnyThresholds = TypeVar("AnyThresholds", bound="ThresholdState")


@dataclass(frozen=True)
class ThresholdState(State):
    """Dead counters, and a mean of thresholds over about the last 1 / (1 - DECAY) = 10 batches.

    sum <- DECAY sum + (1 - DECAY) value;  weight <- DECAY weight + (1 - DECAY);  mean = sum / weight

    Dividing by the weight makes early means right (no start value that fades). dictionary_learning keeps the same
    mean with decay 0.999 from step 1000 on, which a short run never reaches.
    """

    threshold_sum: Tensor  # float64, in units of the code
    threshold_weight: Tensor  # float64

    def observe(self: AnyThresholds, value: Tensor) -> AnyThresholds:
        """The state after a batch in which `value` separated kept from dropped; ignored where it is not positive."""
        seen = (value > 0).double()
        keep = 1 - (1 - DECAY) * seen
        return replace(
            self,
            threshold_sum=self.threshold_sum * keep + (1 - DECAY) * seen * value.double(),
            threshold_weight=self.threshold_weight * keep + (1 - DECAY) * seen,
        )

    def threshold(self) -> Tensor:
        """The mean, float64; 0 before the first observation."""
        return self.threshold_sum / self.threshold_weight.clamp_min(torch.finfo(torch.float64).tiny)


def fresh_threshold_state(base: State, shape: tuple[int, ...] = ()) -> ThresholdState:
    """The state before training: no threshold observed."""
    zeros = torch.zeros(shape, dtype=torch.float64, device=base.tokens_since_fired_F.device)
    return ThresholdState(base.tokens_since_fired_F, zeros, zeros.clone())


def threshold_code(pre_NF: Tensor, threshold: Tensor) -> SparseCode:
    """The ragged code of every pre-activation that is positive and at least the threshold (a scalar or [F])."""
    values_M, indices_M, offsets_N1 = masked_code(pre_NF, (pre_NF >= threshold) & (pre_NF > 0))
    return SparseCode(values_M, indices_M, pre_NF.shape[1], offsets_N1)


def threshold_reference(pre_NF: Tensor, threshold: Tensor) -> Tensor:
    """The same code dense, [N, F]."""
    return pre_NF.relu() * (pre_NF >= threshold)


def mutual_code(pre_NF: Tensor, k: int) -> SparseCode:
    """The ragged code of the k * N largest positive pre-activations of the batch."""
    values_M, indices_M, offsets_N1 = batch_topk_code(pre_NF, k * len(pre_NF))
    return SparseCode(values_M, indices_M, pre_NF.shape[1], offsets_N1)


class BatchThreshold(Dictionary):
    """What kinds share whose training code is a choice over the whole batch: inference by one learnt threshold.

    code = pre where pre >= threshold (and > 0), 0 elsewhere. The threshold is the mean, over about the last 10
    training batches, of the smallest value kept. Before training it is 0: everything positive is kept.
    """

    batch_coupled = True
    scaled_with_x = ("b_enc_F", "b_dec_D", "threshold")
    threshold: Tensor

    def __init__(self, config: Dictionary.Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float32))

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        return threshold_code(self.pre(x_ND), self.threshold)

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        return threshold_reference(self.pre(x_ND), self.threshold)

    def initial_state(self) -> State:
        return fresh_threshold_state(super().initial_state())

    def next_state(self, state: State, code: SparseCode) -> State:
        after = super().next_state(state, code)
        assert isinstance(after, ThresholdState)
        return after.observe(least_positive(code.values))

    def absorb_(self, state: State) -> None:
        assert isinstance(state, ThresholdState)
        self.threshold.copy_(state.threshold())
