"""What every way of computing a step gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from saetools.dictionaries.base import State


@dataclass(frozen=True)
class StepResult:
    """What one step did. Scalars are tensors on the dictionary's device, so that only who reads them waits."""

    loss: Tensor  # weighted sum of losses
    losses: Mapping[str, Tensor]  # unweighted means over rows, by name
    l0: Tensor  # features that fired per row, mean over rows
    n_dead: Tensor  # features that have not fired for dead_after_tokens, this batch included
    grad_norm: Tensor  # global norm after projection, before clipping
    applied: Tensor  # bool: False where the loss or the norm was not finite
    state: "State"  # the dictionary's new training state; the old one where the step was not applied
