"""One optimizer step: the only place where losses are multiplied by their weights and summed.

Order: backward -> project -> clip of the global norm -> Adam -> renormalise. A step whose loss or gradient is not
finite changes nothing. `make_step` chooses between the captured, the fused and the plain one.

`Compute` is the arithmetic of matrix products: "fp32", or "bf16" with float32 sums. Weights, moments, losses and
updates are float32 in either. In bf16 the captured step also gathers bf16 copies of rows, weights and residuals, and
its code is of rounded pre-activations (so that mutual choice learns its threshold to 2^-9 of itself); the fused one
chooses features by a bf16 product and computes the values of the chosen in float32 (scores other than pre, and choices
per feature, are float32 throughout); the plain one runs under autocast. "auto" is bf16 where a fused or
captured step has hardware for it, and fp32 in the plain one.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from saetools.errors import ConfigError
from saetools.functional.statistics import dead_F, l0_N
from saetools.kernels.encode_topk import Precision
from saetools.training.captured import CapturedStep, why_not_captured
from saetools.training.fused import FusedStep, why_not_fused
from saetools.training.optim import Adam
from saetools.training.result import StepResult

if TYPE_CHECKING:
    from saetools.dictionaries.base import Dictionary, Progress, State

Impl = Literal["auto", "fused", "plain"]
Compute = Literal["auto", "bf16", "fp32"]
PRECISION: dict[Compute, Precision] = {"auto": "auto", "bf16": "bf16-screen", "fp32": "fp32"}


class Step(Protocol):
    """A way of computing one step."""

    provider: str

    def __call__(
        self,
        x_ND: Tensor,
        target_ND: Tensor,
        fields: Mapping[str, Tensor],
        state: "State",
        progress: "Progress",
        lr: float,
    ) -> StepResult:
        """Update the dictionary and its optimizer in place on one batch of scaled float32 rows."""
        ...


def make_step(
    dictionary: "Dictionary",
    optimizer: Adam,
    clip_norm: float,
    impl: Impl,
    compute: Compute = "auto",
    n_rows: int | None = None,
) -> Step:
    """The step for a dictionary; ConfigError where `fused` is asked for and there is none.

    `auto` takes the fused step where the dictionary has a plan that covers all its losses, at every point of the run;
    captured as one graph where it is on a GPU and the plan allows; else the plain one, and says so once for a kind
    that trains by gradients. Where n_rows, the rows of a batch, are given, a captured step is rehearsed: on a card that
    does not take it the fused step by stock torch operations is the step, from the start and at every resume.
    """
    if impl == "plain":
        return PlainStep(dictionary, optimizer, clip_norm, compute)
    reason = why_not_fused(dictionary)
    if reason is None:
        if why_not_captured(dictionary) is None:
            step = CapturedStep(dictionary, optimizer, clip_norm, "fp32" if compute == "fp32" else "bf16")
            if n_rows is None or _can_be_recorded(step, n_rows):
                return step
            return FusedStep(dictionary, optimizer, clip_norm, PRECISION[compute], impl="torch")
        return FusedStep(dictionary, optimizer, clip_norm, PRECISION[compute])
    if impl == "fused":
        raise ConfigError(f"training.impl is fused, but {reason}. Use auto or plain.")
    _say_once(reason)
    return PlainStep(dictionary, optimizer, clip_norm, compute)


def _can_be_recorded(step: CapturedStep, n_rows: int) -> bool:
    """Whether this card takes the captured step; says why it does not."""
    from saetools.dictionaries.base import Progress  # which needs more packages than a step

    before = Progress(step=0, n_steps=1, n_tokens=n_rows, dead_after_tokens=n_rows)
    try:
        step.rehearse(n_rows, before)
    except (torch.OutOfMemoryError, AssertionError):
        raise
    except Exception as error:  # the compiler's, the assembler's and the driver's have no common class
        reason = (str(error).splitlines() or [""])[0]
        logging.getLogger(__name__).warning(
            "the captured step cannot be recorded on this GPU (%s: %s): training by stock torch operations, exact but "
            "slower. Please report it.",
            type(error).__name__,
            reason,
        )
        return False
    return True


@cache
def _say_once(reason: str) -> None:
    logging.getLogger(__name__).info("%s: training by autograd", reason)


def trained_parameters(dictionary: "Dictionary") -> dict[str, Tensor]:
    """The parameters that receive gradients, by name, in the order of their declaration."""
    return {name: p for name, p in dictionary.named_parameters() if p.requires_grad}


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """sum_i weight_i * loss_i over the losses of non-zero weight; the names of both must be the same."""
    assert set(losses) == set(weights), f"losses {sorted(losses)} and weights {sorted(weights)} differ"
    terms = [weight * losses[name] for name, weight in weights.items() if weight != 0]
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float32)


class PlainStep:
    """The step by autograd, for every dictionary that has a loss."""

    def __init__(self, dictionary: "Dictionary", optimizer: Adam, clip_norm: float, compute: Compute = "fp32") -> None:
        self.dictionary, self.optimizer, self.clip_norm = dictionary, optimizer, clip_norm
        self.low = compute == "bf16"
        self.provider = "plain-bf16" if self.low else "plain"

    def __call__(
        self,
        x_ND: Tensor,
        target_ND: Tensor,
        fields: Mapping[str, Tensor],
        state: "State",
        progress: "Progress",
        lr: float,
    ) -> StepResult:
        self.dictionary.zero_grad(set_to_none=True)
        with torch.autocast(x_ND.device.type, torch.bfloat16, enabled=self.low):
            terms = self.dictionary.loss_terms(x_ND, target_ND, fields, state, progress)
        loss = weighted_sum(terms.losses, self.dictionary.loss_weights(progress))
        loss.backward()
        self.dictionary.project_gradients_()
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.optimizer.parameters.items()
        }
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        applied = torch.isfinite(loss.detach()) & torch.isfinite(norm)
        if applied:
            clip_(gradients, norm, self.clip_norm)
            self.optimizer.step_(gradients, lr)
            self.dictionary.constrain_()
            state = terms.new_state
        self.dictionary.zero_grad(set_to_none=True)
        return StepResult(
            loss=loss.detach(),
            losses={name: value.detach() for name, value in terms.losses.items()},
            l0=l0_N(terms.code).double().mean(),
            n_dead=dead_F(state.tokens_since_fired_F, progress.dead_after_tokens).sum(),
            grad_norm=norm,
            applied=applied,
            state=state,
        )


@torch.no_grad()
def clip_(gradients: Mapping[str, Tensor], norm: Tensor, clip_norm: float) -> None:
    """g <- g * min(clip_norm / norm, 1), in place: exactly unchanged where the norm is within the bound."""
    torch._foreach_mul_(list(gradients.values()), (clip_norm / norm).clamp_max(1.0))
