"""One dictionary in training: blocks of raw rows go in, steps come out. No disk, no clock, no logging."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from saetools.activations.base import ActivationBatch
from saetools.activations.batches import BatchCutter
from saetools.dictionaries.base import Dictionary, Progress
from saetools.records import Calibration
from saetools.training.optim import Adam
from saetools.training.schedule import Plan
from saetools.training.state import TrainState
from saetools.training.step import Impl, StepResult, make_step, trained_parameters


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
    """

    def __init__(self, dictionary: Dictionary, plan: Plan, calibration: Calibration, impl: Impl) -> None:
        self.dictionary, self.plan, self.calibration = dictionary, plan, calibration
        self.optimizer = Adam(trained_parameters(dictionary))
        self.take_step = make_step(dictionary, self.optimizer, plan.clip_norm, impl)
        self.state = TrainState(dictionary.initial_state())
        self.queue = BatchCutter()
        self.n_blocks = 0

    @property
    def finished(self) -> bool:
        return self.state.step >= self.plan.n_steps

    @property
    def n_tokens(self) -> int:
        """Rows consumed."""
        return self.state.step * self.plan.batch_rows

    def consume(self, block: ActivationBatch) -> Iterator[Done]:
        """Take the next block of the stream and do the steps that it completes, as they are asked for."""
        self.n_blocks += 1
        self.queue.push(block)
        while self.queue.n_rows >= self.plan.batch_rows and not self.finished:
            yield self._step(self.queue.pop(self.plan.batch_rows))

    def _step(self, batch: ActivationBatch) -> Done:
        device, lr = self.dictionary.device, self.plan.lr(self.state.step)
        x_ND = batch.x_ND.to(device, torch.float32) * self.calibration.scale
        fields = {name: value.to(device) for name, value in batch.fields.items()}
        progress = Progress(self.state.step, self.plan.n_steps, self.plan.n_tokens, self.plan.dead_after_tokens)
        result = self.take_step(x_ND, x_ND, fields, self.state.dictionary, progress, lr)
        self.state = self.state.after(result.state, bool(result.applied))
        return Done(batch, lr, result, self.state)
