"""Construction: dictionaries that grow from the rows of the stream, without gradients (`trained_by`)."""

import torch

from saetools.activations.base import ActivationBatch
from saetools.dictionaries.base import Dictionary
from saetools.errors import ConfigError
from saetools.functional.statistics import dead_F, l0_N
from saetools.records import Calibration
from saetools.training.result import StepResult
from saetools.training.schedule import Plan
from saetools.training.step import Compute, Impl
from saetools.training.trainer import Done, Trainer


class ConstructionTrainer(Trainer):
    """Grows a dictionary by `update`, batch by batch of the same stream, until it is full or the rows are consumed.

    Metrics are those of the dictionary before each batch; there is no learning rate and no gradient (both 0), and
    only features in use count as dead. A batch that is not finite changes nothing.
    """

    def __init__(
        self, dictionary: Dictionary, plan: Plan, calibration: Calibration, impl: Impl, compute: Compute = "auto"
    ) -> None:
        if impl == "fused":
            raise ConfigError(
                f"training.impl is fused, but the dictionary kind {dictionary.kind!r} is constructed, not trained by "
                "steps. Use auto or plain."
            )
        if compute == "bf16":
            raise ConfigError(
                f"training.compute is bf16, but the dictionary kind {dictionary.kind!r} is constructed in float32. Use "
                "auto or fp32."
            )
        super().__init__(dictionary, plan, calibration, "plain")

    @property
    def finished(self) -> bool:
        return super().finished or self.dictionary.full

    @torch.no_grad()
    def _step(self, batch: ActivationBatch) -> Done:
        x_ND = batch.x_ND.to(self.dictionary.device, torch.float32) * self.calibration.scale
        result = self._update(x_ND, batch) if bool(x_ND.isfinite().all()) else self._skip(x_ND)
        self.state = self.state.after(result.state, bool(result.applied))
        return Done(batch, 0.0, result, self.state)

    def _update(self, x_ND: torch.Tensor, batch: ActivationBatch) -> StepResult:
        terms = self.dictionary.update(x_ND, batch.where_N2, self.state.dictionary)
        in_use_F = self.dictionary.in_use_F()
        dead = dead_F(terms.new_state.tokens_since_fired_F, self.plan.dead_after_tokens) & in_use_F
        return StepResult(
            loss=terms.losses["reconstruction"],
            losses={**terms.losses, "n_atoms": in_use_F.sum()},
            l0=l0_N(terms.code).double().mean(),
            n_dead=dead.sum(),
            grad_norm=x_ND.new_zeros(()),
            applied=torch.tensor(True, device="cpu"),
            state=terms.new_state,
        )

    def _skip(self, x_ND: torch.Tensor) -> StepResult:
        nothing = x_ND.new_full((), torch.nan)
        return StepResult(
            loss=nothing,
            losses={},
            l0=nothing,
            n_dead=torch.tensor(0, device="cpu"),
            grad_norm=nothing,
            applied=torch.tensor(False, device="cpu"),
            state=self.state.dictionary,
        )


def make_trainer(
    dictionary: Dictionary, plan: Plan, calibration: Calibration, impl: Impl, compute: Compute = "auto"
) -> Trainer:
    """The trainer of a dictionary's kind; ConfigError for kinds that are not trained."""
    if dictionary.trained_by == "nothing":
        raise ConfigError(
            f"the dictionary kind {dictionary.kind!r} is not trained: it codes rows over given atoms. Train another "
            "kind and take its atoms."
        )
    made = ConstructionTrainer if dictionary.trained_by == "construction" else Trainer
    return made(dictionary, plan, calibration, impl, compute)
