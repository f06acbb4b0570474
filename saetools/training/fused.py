"""The step by fused kernels: select, decode and update without autograd, for dictionaries that have a plan for it.

It computes what `PlainStep` computes, reordering sums: the same losses, the same projection, clip, Adam and
renormalisation, on the same optimizer state, so that checkpoints of both are alike. No [N, F] tensor beyond a chunk
of rows and no [F, D] gradient is made.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saetools.dictionaries.code import SparseCode
from saetools.functional.losses import mean_of_rows
from saetools.functional.statistics import dead_F
from saetools.kernels.auxk import auxk
from saetools.kernels.backend import Impl as KernelImpl
from saetools.kernels.backend import import_numba, resolve
from saetools.kernels.backward_adam import Batch, ExtraRows, Rule, Weights, backward_adam, gradients
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import Precision, encode_topk, preferred_precision
from saetools.kernels.global_topk import global_topk
from saetools.kernels.plan import FusedPlan
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace
from saetools.training.optim import Adam
from saetools.training.result import StepResult

if TYPE_CHECKING:
    from saetools.dictionaries.base import Dictionary, Progress, State

NAMES = ("W_enc_FD", "W_dec_FD", "b_enc_F", "b_dec_D")
AUXK = "auxk"


def why_not_fused(dictionary: "Dictionary") -> str | None:
    """Why the fused step cannot train this dictionary all through a run; None where it can."""
    plan = dictionary.fused_plan()
    if plan is None or plan.selection not in ("per_row", "global") or plan.score != "value":
        return f"there is no fused step for the dictionary kind {dictionary.kind!r} with these settings"
    uncovered = sorted(_weighted(dictionary) - plan.covers)
    if uncovered:
        return f"the fused step of {dictionary.kind!r} does not cover {', '.join(uncovered)}"
    return None


def _weighted(dictionary: "Dictionary") -> set[str]:
    """The losses that have a weight at the beginning, in the middle or at the end of a run."""
    from saetools.dictionaries.base import Progress

    moments = [Progress(step=step, n_steps=101, n_tokens=101, dead_after_tokens=1) for step in (0, 50, 100)]
    return {name for now in moments for name, weight in dictionary.loss_weights(now).items() if weight != 0}


@dataclass(frozen=True)
class Forward:
    """A batch's way to its loss, and what the way back needs."""

    code: SparseCode
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
        self.last_threshold = 0.0  # a guess for the next global selection: it decides its time, never its result
        (self.main_loss,) = plan.covers - {AUXK}
        chosen = resolve(impl, dictionary.W_enc_FD)
        if chosen == "numba":
            import_numba()
        self.precision: Precision = preferred_precision(chosen) if precision == "auto" else precision
        self.provider = f"fused-{chosen}-{self.precision}"

    def __call__(
        self,
        x_ND: Tensor,
        target_ND: Tensor,
        fields: Mapping[str, Tensor],
        state: "State",
        progress: "Progress",
        lr: float,
    ) -> StepResult:
        forward = self._forward(x_ND, target_ND, state, progress)
        weights = self.dictionary.loss_weights(progress)
        loss = torch.stack([weights[name] * value for name, value in forward.losses.items()]).sum()
        norm = torch.nan
        if torch.isfinite(loss):
            norm = backward_adam(
                *(self._weights(), self._four(self.optimizer.first), self._four(self.optimizer.second)),
                forward.batch,
                Rule(lr, self.optimizer.n_steps, self.clip_norm, self.optimizer.betas, self.optimizer.eps),
                forward.extra,
                workspace=self.workspace,
                impl=self.impl,
            )
        applied = norm < torch.inf
        if applied:
            self.optimizer.n_steps += 1
            state = self.dictionary.next_state(state, forward.code)
        return StepResult(
            loss=loss,
            losses=forward.losses,
            l0=(forward.code.values != 0).sum().double() / max(len(x_ND), 1),
            n_dead=dead_F(state.tokens_since_fired_F, progress.dead_after_tokens).sum(),
            grad_norm=torch.tensor(norm),
            applied=torch.tensor(applied),
            state=state,
        )

    def gradients(self, x_ND: Tensor, target_ND: Tensor, state: "State", progress: "Progress") -> dict[str, Tensor]:
        """The gradient of each parameter, neither projected nor clipped, for comparison with autograd."""
        forward = self._forward(x_ND, target_ND, state, progress)
        return dict(zip(NAMES, gradients(self._weights(), forward.batch, forward.extra), strict=True))

    @torch.no_grad()
    def _forward(self, x_ND: Tensor, target_ND: Tensor, state: "State", progress: "Progress") -> Forward:
        own, weights = self._weights(), self.dictionary.loss_weights(progress)
        centred_ND = torch.sub(x_ND, own.b_dec_D, out=self.workspace.get("centred", tuple(x_ND.shape), x_ND.dtype))
        code = self._select(centred_ND, own)
        offsets_N1 = code.offsets_N1
        if offsets_N1 is None:
            flat = Sparse.fixed(code.values, code.indices)
        else:
            flat = Sparse(code.values, code.indices, offsets_N1)
        n_groups = max(len(self.plan.groups), 1)
        loss_NG, pull_NGD, dots_M = decode_loss(
            *(target_ND, flat, own.W_dec_FD, own.b_dec_D),
            ends=self.plan.groups,
            weights=(1 / n_groups,) * n_groups,
            workspace=self.workspace,
            impl=self.impl,
        )
        variance = self.dictionary.total_variance.to(x_ND.dtype)
        losses = {self.main_loss: mean_of_rows(loss_NG.sum(1)) / (n_groups * variance)}
        scale = 2 * weights[self.main_loss] / (max(len(x_ND), 1) * float(variance))
        extra = None
        if weights.get(AUXK, 0) != 0:
            dead_A = dead_F(state.tokens_since_fired_F, progress.dead_after_tokens).nonzero()[:, 0]
            losses[AUXK], extra = auxk(
                *(centred_ND, pull_NGD[:, -1] * n_groups, own.W_enc_FD, own.b_enc_F, own.W_dec_FD),
                *(dead_A, self.plan.aux_k, weights[AUXK]),
                workspace=self.workspace,
                impl=self.impl,
            )
        return Forward(code, Batch(centred_ND, flat, pull_NGD, dots_M, scale, self.plan.groups), losses, extra)

    def _select(self, centred_ND: Tensor, own: Weights) -> SparseCode:
        encoder = (centred_ND, own.W_enc_FD, own.b_enc_F)
        n_features = len(own.b_enc_F)
        if self.plan.selection == "per_row":
            values_NK, indices_NK = encode_topk(
                *encoder, self.plan.k, precision=self.precision, workspace=self.workspace, impl=self.impl
            )
            return SparseCode(values_NK, indices_NK, n_features)
        n_kept = self.plan.k * len(centred_ND)
        flat, threshold = global_topk(
            *encoder,
            n_kept,
            precision=self.precision,
            guess=self.last_threshold * 0.97,
            workspace=self.workspace,
            impl=self.impl,
        )
        self.last_threshold = threshold if math.isfinite(threshold) else 0.0
        return SparseCode(flat.values_M, flat.indices_M, n_features, flat.offsets_N1)

    def _weights(self) -> Weights:
        return self._four({name: p.detach() for name, p in self.optimizer.parameters.items()})

    @staticmethod
    def _four(tensors: Mapping[str, Tensor]) -> Weights:
        return Weights(*(tensors[name] for name in NAMES))
