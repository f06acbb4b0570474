"""The step by fused kernels: select, decode and update without autograd, for dictionaries that have a plan for it.

It computes what `PlainStep` computes, reordering sums: the same losses, the same projection, clip, Adam and
renormalisation, on the same optimizer state, so that checkpoints of both are alike. No [N, F] tensor beyond a chunk
of rows and no [F, D] gradient is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saetools.functional.losses import mean_of_rows
from saetools.functional.statistics import dead_F
from saetools.kernels.auxk import auxk
from saetools.kernels.backend import Impl as KernelImpl
from saetools.kernels.backend import resolve
from saetools.kernels.backward_adam import Batch, ExtraRows, Rule, Weights, backward_adam, gradients
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import Precision, preferred_precision
from saetools.kernels.plan import MULTI_TOPK, FusedPlan
from saetools.kernels.workspace import Workspace
from saetools.training.optim import Adam
from saetools.training.result import StepResult
from saetools.training.selection import Selected, Selector

if TYPE_CHECKING:
    from saetools.dictionaries.base import Dictionary, Progress, State

NAMES = ("W_enc_FD", "W_dec_FD", "b_enc_F", "b_dec_D")
MOST_GROUPS = 256


def why_not_fused(dictionary: "Dictionary") -> str | None:
    """Why the fused step cannot train this dictionary all through a run; None where it can."""
    plan = dictionary.fused_plan()
    if plan is None:
        return f"there is no fused step for the dictionary kind {dictionary.kind!r} with these settings"
    uncovered = sorted(_weighted(dictionary) - plan.covers)
    if uncovered:
        return f"the fused step of {dictionary.kind!r} does not cover {', '.join(uncovered)}"
    if len(plan.groups) > MOST_GROUPS:
        return f"the fused step numbers groups by a byte, and these are {len(plan.groups)}"
    return None


def _weighted(dictionary: "Dictionary") -> set[str]:
    """The losses that have a weight at the beginning, in the middle or at the end of a run."""
    from saetools.dictionaries.base import Progress

    moments = [Progress(step=step, n_steps=101, n_tokens=101, dead_after_tokens=1) for step in (0, 50, 100)]
    return {name for now in moments for name, weight in dictionary.loss_weights(now).items() if weight != 0}


@dataclass(frozen=True)
class Forward:
    """A batch's way to its loss, and what the way back needs."""

    state: "State"  # with what the batch's fields add to it; the code is not counted yet
    selected: Selected
    batch: Batch
    losses: Mapping[str, Tensor]
    extra: ExtraRows | None


class FusedStep:
    """One step by fused kernels; `why_not_fused` must have given None for the dictionary."""

    def __init__(
        self,
        dictionary: "Dictionary",
        optimizer: Adam,
        clip_norm: float,
        precision: Precision = "auto",
        impl: KernelImpl = "auto",
    ) -> None:
        plan = dictionary.fused_plan()
        assert plan is not None and set(optimizer.parameters) == set(NAMES)
        self.dictionary, self.optimizer, self.clip_norm = dictionary, optimizer, clip_norm
        self.plan: FusedPlan = plan
        self.impl: KernelImpl = impl
        self.workspace = Workspace()
        chosen = resolve(impl, dictionary.W_enc_FD)
        precision = preferred_precision(chosen) if precision == "auto" else precision
        self.selector = Selector(plan, precision, impl, self.workspace)
        self.provider = f"fused-{chosen}-{precision}"

    def __call__(
        self,
        x_ND: Tensor,
        target_ND: Tensor,
        fields: Mapping[str, Tensor],
        state: "State",
        progress: "Progress",
        lr: float,
    ) -> StepResult:
        forward = self._forward(x_ND, target_ND, fields, state, progress)
        weights = self.dictionary.loss_weights(progress)
        loss = torch.stack([weights[name] * value for name, value in forward.losses.items()]).sum()
        norm = torch.nan
        if torch.isfinite(loss):
            norm = backward_adam(
                *(self._weights(), four(self.optimizer.first), four(self.optimizer.second)),
                forward.batch,
                Rule(lr, self.optimizer.n_steps, self.clip_norm, self.optimizer.betas, self.optimizer.eps),
                forward.extra,
                workspace=self.workspace,
                impl=self.impl,
            )
        applied = norm < torch.inf
        selected = forward.selected
        if applied:
            self.optimizer.n_steps += 1
            state = self.dictionary.fused_state(forward.state, selected.code, selected.reached_F)
        return StepResult(
            loss=loss,
            losses=forward.losses,
            l0=(selected.code.values != 0).sum().double() / max(len(x_ND), 1),
            n_dead=dead_F(state.tokens_since_fired_F, progress.dead_after_tokens).sum(),
            grad_norm=torch.tensor(norm, dtype=torch.float32, device="cpu"),
            applied=torch.tensor(applied, device="cpu"),
            state=state,
        )

    def gradients(
        self,
        x_ND: Tensor,
        target_ND: Tensor,
        fields: Mapping[str, Tensor],
        state: "State",
        progress: "Progress",
    ) -> dict[str, Tensor]:
        """The gradient of each parameter, neither projected nor clipped, for comparison with autograd."""
        forward = self._forward(x_ND, target_ND, fields, state, progress)
        tensors = self._weights(), forward.batch, forward.extra
        return dict(zip(NAMES, gradients(*tensors, workspace=self.workspace, impl=self.impl), strict=True))

    @torch.no_grad()
    def _forward(
        self,
        x_ND: Tensor,
        target_ND: Tensor,
        fields: Mapping[str, Tensor],
        state: "State",
        progress: "Progress",
    ) -> Forward:
        own, weights, plan = self._weights(), self.dictionary.loss_weights(progress), self.plan
        centred_ND = torch.sub(
            x_ND, own.b_dec_D, out=self.workspace.get("centred", tuple(x_ND.shape), x_ND.dtype, x_ND.device)
        )
        state, wanted = self.dictionary.fused_batch(x_ND, fields, state, progress)
        selected = self.selector(centred_ND, own.W_enc_FD, own.b_enc_F, wanted)
        group_weights = self._group_weights(weights)
        loss_NG, pull_NGD, dots_M = decode_loss(
            *(target_ND, selected.flat, own.W_dec_FD, own.b_dec_D),
            group_M=selected.group_M,
            weights=group_weights,
            workspace=self.workspace,
            impl=self.impl,
        )
        variance = float(self.dictionary.total_variance)
        n_rows = max(len(x_ND), 1)
        losses = self._reconstruction(loss_NG, variance)
        shrink = 0.0
        if plan.code_l2 is not None:
            square = selected.flat.values_M.square().sum(dtype=torch.float64)
            losses[plan.code_l2] = (square / (2 * n_rows * variance)).to(x_ND.dtype)
            shrink = weights[plan.code_l2] / (n_rows * variance)
        extra = None
        if plan.auxiliary is not None:
            losses[plan.auxiliary], extra = auxk(
                centred_ND,
                self._main_residual(pull_NGD, group_weights) if len(wanted.helped_A) else pull_NGD[:, 0],
                own.W_enc_FD,
                own.b_enc_F,
                own.W_dec_FD,
                wanted.helped_A,
                plan.aux_k,
                weights[plan.auxiliary],
                workspace=self.workspace,
                impl=self.impl,
            )
        scale = 2 / (n_rows * variance)
        batch = Batch(centred_ND, selected.flat, pull_NGD, dots_M, scale, selected.group_M, shrink)
        return Forward(state, selected, batch, losses, extra)

    def _group_weights(self, weights: Mapping[str, float]) -> tuple[float, ...]:
        """The weight of each residual: the main loss is the mean over groups; MultiTopK's residual is the last."""
        n_groups = max(len(self.plan.groups), 1)
        multi = (weights[MULTI_TOPK],) if self.plan.multi_k else ()
        return (weights[self.plan.main] / n_groups,) * n_groups + multi

    def _main_residual(self, pull_NGD: Tensor, group_weights: tuple[float, ...]) -> Tensor:
        """target - recon of all groups of the main loss, from pull, which sums weight * residual over later groups."""
        last = max(len(self.plan.groups), 1) - 1
        own_ND = pull_NGD[:, last]
        if last + 1 < len(group_weights):
            own_ND = own_ND - pull_NGD[:, last + 1]
        return own_ND / group_weights[last]

    def _reconstruction(self, loss_NG: Tensor, variance: float) -> dict[str, Tensor]:
        n_groups = max(len(self.plan.groups), 1)
        losses = {self.plan.main: mean_of_rows(loss_NG[:, :n_groups].sum(1)) / (n_groups * variance)}
        if self.plan.multi_k:
            losses[MULTI_TOPK] = mean_of_rows(loss_NG[:, n_groups]) / variance
        return losses

    def _weights(self) -> Weights:
        return four({name: p.detach() for name, p in self.optimizer.parameters.items()})


def four(tensors: Mapping[str, Tensor]) -> Weights:
    """The four parameters (or their moments) out of tensors by name."""
    return Weights(*(tensors[name] for name in NAMES))
