"""What a training run carries from step to step besides weights and optimizer moments."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saetools.dictionaries.base import State


@dataclass(frozen=True)
class TrainState:
    """Counters and the dictionary's own state after `step` batches."""

    dictionary: "State"
    step: int = 0  # batches consumed, skipped ones included
    n_skipped: int = 0  # steps not applied because the loss or the gradient was not finite
    n_skipped_in_row: int = 0  # of these, the ones since the last step that was applied

    def after(self, state: "State", applied: bool) -> "TrainState":
        """The state after one more step."""
        return TrainState(
            dictionary=state,
            step=self.step + 1,
            n_skipped=self.n_skipped + (not applied),
            n_skipped_in_row=0 if applied else self.n_skipped_in_row + 1,
        )

    def calmed(self) -> "TrainState":
        """The same with the row of skipped steps forgotten, so that a resumed run tries the next rows."""
        return replace(self, n_skipped_in_row=0)
