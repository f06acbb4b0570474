"""One dictionary in training: blocks of raw rows go in, steps come out. No disk, no clock, no logging."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from saetools.activations.base import ActivationBatch
from saetools.activations.batches import BatchCutter
from saetools.dictionaries.base import Dictionary, Progress
from saetools.records import Calibration
from saetools.training.captured import CapturedStep
from saetools.training.optim import Adam
from saetools.training.schedule import Plan
from saetools.training.state import TrainState
from saetools.training.step import Compute, Impl, StepResult, make_step, trained_parameters


@dataclass(frozen=True)
class Done:
    """One step with what it was made of."""

    batch: ActivationBatch
    lr: float
    result: StepResult
    state: TrainState  # after the step


class Trainer:
    """Trains a dictionary of scaled rows by its plan.

    Rows are multiplied by the calibration's scale and made float32; the target is the rows themselves. `n_blocks`
    counts the blocks of the stream that were taken: several trainers with batches of other sizes share one stream.
    A captured step runs ahead: `n_begun` steps were begun, `state` tells of those that are known; `settle` waits.
    """

    def __init__(
        self, dictionary: Dictionary, plan: Plan, calibration: Calibration, impl: Impl, compute: Compute = "auto"
    ) -> None:
        self.dictionary, self.plan, self.calibration = dictionary, plan, calibration
        self.optimizer = Adam(trained_parameters(dictionary))
        self.take_step = make_step(dictionary, self.optimizer, plan.clip_norm, impl, compute, plan.batch_rows)
        self.state = TrainState(dictionary.initial_state())
        self.queue = BatchCutter()
        self.n_blocks = 0
        self._ahead: list[tuple[ActivationBatch, float]] = []

    @property
    def n_begun(self) -> int:
        """Steps begun: those that `state` counts, and those under way."""
        return self.state.step + len(self._ahead)

    @property
    def finished(self) -> bool:
        """Whether all steps of the plan were begun."""
        return self.n_begun >= self.plan.n_steps

    @property
    def n_tokens(self) -> int:
        """Rows consumed."""
        return self.n_begun * self.plan.batch_rows

    def consume(self, block: ActivationBatch) -> Iterator[Done]:
        """Take the next block of the stream and do the steps that it completes, as they are asked for."""
        self.n_blocks += 1
        self.queue.push(block)
        while self.queue.n_rows >= self.plan.batch_rows and not self.finished:
            batch, step = self.queue.pop(self.plan.batch_rows), self.take_step
            if not isinstance(step, CapturedStep):
                yield self._step(batch)
                continue
            lr = self.plan.lr(self.n_begun)
            step.begin(self._rows(batch), self.state.dictionary, self._progress(), lr)
            self._ahead.append((batch, lr))
            yield from self.settle() if self.finished else self._told(step.known())

    def settle(self) -> list[Done]:
        """Wait for the steps under way; what they did. Their dictionary states are all that after the last of them."""
        if not self._ahead:
            return []
        assert isinstance(self.take_step, CapturedStep)
        done = self._told(self.take_step.collect())
        assert not self._ahead, "every step begun is told of"
        return done

    def _told(self, results: list[StepResult]) -> list[Done]:
        """What the first of the steps under way did."""
        found = []
        for (batch, lr), result in zip(self._ahead, results, strict=False):
            self.state = self.state.after(result.state, bool(result.applied))
            found.append(Done(batch, lr, result, self.state))
        del self._ahead[: len(found)]
        return found

    def _step(self, batch: ActivationBatch) -> Done:
        x_ND, lr = self._rows(batch), self.plan.lr(self.state.step)
        fields = {name: value.to(x_ND.device) for name, value in batch.fields.items()}
        result = self.take_step(x_ND, x_ND, fields, self.state.dictionary, self._progress(), lr)
        self.state = self.state.after(result.state, bool(result.applied))
        return Done(batch, lr, result, self.state)

    def _rows(self, batch: ActivationBatch) -> Tensor:
        """Scaled float32 rows where the dictionary is; the copy to a GPU is not waited for."""
        device, x_ND = self.dictionary.device, batch.x_ND
        if device.type == "cuda" and x_ND.device.type == "cpu":
            x_ND = x_ND.pin_memory()
        return x_ND.to(device, non_blocking=True).float() * self.calibration.scale

    def _progress(self) -> Progress:
        return Progress(self.n_begun, self.plan.n_steps, self.plan.n_tokens, self.plan.dead_after_tokens)
