"""A threshold learnt while training, that takes the place of a selection that inference may not make."""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from saetools.dictionaries.base import State

DECAY = 0.99
AnyThresholds = TypeVar("AnyThresholds", bound="ThresholdState")


@dataclass(frozen=True)
class ThresholdState(State):
    """Dead counters, and a mean of thresholds over about the last 1 / (1 - DECAY) = 100 batches.

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
