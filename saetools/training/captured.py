"""TopK's and mutual choice's step on a GPU that runs ahead of the host: one CUDA graph, read every few batches.

What a step is to know lies on the device, and so does every decision. The host reads statistics and flags of
`N_AHEAD` batches together, while the device does the next as many. A batch with more dead features than the graph has
room for, or for whose selection the guess or the room was wrong, changes nothing, nor do those after it; they are kept
(two readings of them at most), done again one by one with room for all, and the graph is recorded anew if more features
are dead. So the result is that of one step after the other, whenever the host reads. Weights, moments and counters are
those of the dictionary and its optimizer, in place; the threshold of mutual choice, which no step reads, is learnt from
the records by the dictionary's own rule. Checkpoints of this step and of the others are alike.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from saetools.kernels.auxk import TRITON_CAPACITY
from saetools.kernels.backend import have_triton
from saetools.kernels.encode_topk import TRITON_MAX_FEATURES, TRITON_MAX_K
from saetools.kernels.topk_step import Compute, StepRecord, StepSettings
from saetools.training.fused import four, why_not_fused
from saetools.training.optim import Adam
from saetools.training.result import StepResult

if TYPE_CHECKING:
    from saetools.dictionaries.base import Dictionary, Progress, State
    from saetools.dictionaries.threshold import ThresholdState
    from saetools.kernels.topk_step.triton import DeviceStep, Mark

N_AHEAD = 16
"""Batches of a reading."""
LEAST_ROOM = 256
"""Dead features that a graph with AuxK has room for, at least."""
PATIENCE = 16
"""Readings in a row that use less than half the room for dead features, after which the graph is recorded anew."""
_DECIDES = ("fused_batch", "fused_state", "next_state")

_logger = logging.getLogger(__name__)


def why_not_captured(dictionary: "Dictionary") -> str | None:
    """Why this dictionary's steps cannot be recorded as one graph where it is; None where they can."""
    from saetools.dictionaries.base import Dictionary
    from saetools.dictionaries.threshold import BatchThreshold

    if (reason := why_not_fused(dictionary)) is not None:
        return reason
    plan, device = dictionary.fused_plan(), dictionary.device
    assert plan is not None
    if not runs_on(device):
        return f"there are no Triton kernels on {device.type}"
    if plan.selection == "per_feature" or plan.groups or plan.multi_k or plan.code_l2:
        return (
            f"the captured step selects per row or over the batch and has one reconstruction; {dictionary.kind!r} asks "
            "for more"
        )
    per_row = plan.selection == "per_row"
    known = Dictionary if per_row else BatchThreshold
    if any(getattr(type(dictionary), name) is not getattr(known, name) for name in _DECIDES):
        return f"{dictionary.kind!r} decides anew for each batch"
    if per_row and (plan.k > TRITON_MAX_K or dictionary.config.n_features > TRITON_MAX_FEATURES):
        return f"k is {plan.k} of {dictionary.config.n_features}, too many for one program"
    return None


def room_for(n_dead: int, most: int) -> int:
    """How many dead features a graph that is recorded now has room for: an eighth more than are dead, since AuxK's
    products are as large as the room."""
    return min(most, max(n_dead + n_dead // 8, LEAST_ROOM)) if n_dead else 0


def runs_on(device: torch.device) -> bool:
    """Whether steps are captured there: on a GPU that has Triton."""
    return device.type == "cuda" and have_triton(device.type, device.index)


class CapturedStep:
    """Steps of one dictionary, begun without waiting and told of together; `why_not_captured` must have given None.

    `begin` takes a batch. `known`, asked after each, gives the results of a reading once the next one is under way;
    `collect` waits for all that were begun. Results come in order. A call begins and collects.
    On CPU tensors (triton's interpreter: tests) the same launches are made one by one.
    """

    n_ahead = N_AHEAD

    def __init__(self, dictionary: "Dictionary", optimizer: Adam, clip_norm: float, compute: Compute) -> None:
        plan = dictionary.fused_plan()
        assert plan is not None
        self.dictionary, self.optimizer, self.clip_norm = dictionary, optimizer, clip_norm
        self.plan, self.compute = plan, compute
        self.provider = f"captured-triton-{compute}"
        self.room = self._n_spare = 0  # room for dead features; readings in a row that used less than half
        self._device: DeviceStep | None = None
        self._kept: list[tuple[Tensor, float]] = []
        self._state: State | None = None
        self._mark: Mark | None = None  # of the reading before the one under way

    def __call__(
        self,
        x_ND: Tensor,
        target_ND: Tensor,
        fields: Mapping[str, Tensor],
        state: "State",
        progress: "Progress",
        lr: float,
    ) -> StepResult:
        assert target_ND is x_ND, "the captured step reconstructs its rows"
        self.begin(x_ND, state, progress, lr)
        return self.collect()[-1]

    def rehearse(self, n_rows: int, progress: "Progress") -> None:
        """Record steps on random rows, without and with the least room for AuxK, which change nothing, and forget them.

        What this card or its compiler does not take is raised here, before a run has begun; more room is recorded when
        it is needed. Loss weights are those of `progress`.
        """
        dictionary = self.dictionary
        numbers = torch.Generator(dictionary.device).manual_seed(0)  # the device's own does not move
        x_ND = torch.randn(n_rows, dictionary.d_model, generator=numbers, device=dictionary.device, dtype=torch.float32)
        since_F = torch.zeros(dictionary.config.n_features, dtype=torch.int64, device=dictionary.device)
        settings = replace(self._settings(progress), variance=1.0)  # not calibrated yet, maybe
        for room in (0, min(LEAST_ROOM, len(since_F))) if settings.aux_weight > 0 else (0,):
            self._captured(replace(settings, capacity=room), x_ND, since_F)

    def begin(self, x_ND: Tensor, state: "State", progress: "Progress", lr: float) -> None:
        """Start the step on one batch of scaled float32 rows; at most 2 `n_ahead` may be under way.

        The first batch settles the shapes, and `state` counts from there on: later states are those given back.
        """
        assert len(self._kept) < 2 * self.n_ahead
        if self._device is None:
            self._device, self._state = self._make(x_ND, state, progress), self._on_host(state)
        step = self._device
        step.set_rates([lr])
        step.load(x_ND)
        step.launch() if step.graph is None else step.replay()
        self._kept.append((x_ND, lr))

    def collect(self) -> list[StepResult]:
        """Wait, do again what was flagged, and give the results of the batches begun and not yet told of."""
        return self._finish([])

    def known(self) -> list[StepResult]:
        """The results of a reading when the next one is begun whole, not waiting for that; nothing in between.

        Where something is to be done again, or the graph to be recorded anew, all that were begun are waited for.
        """
        if self._device is None or not self._kept or len(self._kept) % self.n_ahead:
            return []
        earlier, self._mark = self._mark, self._device.mark()
        if earlier is None:
            return []
        records = self._device.read(earlier)
        if any(record.flagged for record in records) or self._room_for(records[-1].n_dead) != self.room:
            return self._finish(records)
        return self._told(records, earlier.since_F)

    def _finish(self, records: list[StepRecord]) -> list[StepResult]:
        """The results of these and of all that were begun after them."""
        self._mark = None
        if self._device is None or not self._kept:
            return []
        records = records + self._device.read()
        flagged = [number for number, record in enumerate(records) if record.flagged]
        if flagged:
            _logger.info("%d of %d batches are done again: a room or a guess was wrong", len(flagged), len(records))
        for number in flagged:
            records[number] = self._again(*self._kept[number])
        results = self._told(records, self._device.since_F.clone())
        self._fit_room(records[-1].n_dead)
        return results

    def _told(self, records: list[StepRecord], since_F: Tensor) -> list[StepResult]:
        """The results of the first batches that are kept, which are forgotten; since_F: the counters after them."""
        del self._kept[: len(records)]
        self.optimizer.n_steps += sum(record.applied for record in records)
        self._state = self._after(records, since_F)
        self._n_spare = self._n_spare + 1 if 2 * records[-1].n_dead < self.room else 0
        return [self._result(record) for record in records]

    def _on_host(self, state: "State") -> "State":
        """The state with the two numbers of a learnt threshold on the host, where they are counted on."""
        if self.plan.selection != "global":
            return state
        learnt = cast("ThresholdState", state)
        return replace(learnt, threshold_sum=learnt.threshold_sum.cpu(), threshold_weight=learnt.threshold_weight.cpu())

    def _after(self, records: list[StepRecord], since_F: Tensor) -> "State":
        """The state after these batches, as the dictionary's `next_state` would have given it."""
        assert self._state is not None
        state = replace(self._state, tokens_since_fired_F=since_F)
        if self.plan.selection != "global":
            return state
        learnt = cast("ThresholdState", state)
        for record in records:
            if record.applied:
                learnt = learnt.observe(torch.tensor(record.least, dtype=torch.float32, device="cpu"))
        return learnt

    def _again(self, x_ND: Tensor, lr: float) -> StepRecord:
        """One batch launch by launch, with room for every dead feature."""
        step = self._device
        assert step is not None
        step.set_rates([lr])
        step.load(x_ND)
        with step.exactly():
            step.launch()
        return step.read()[-1]

    @property
    def _most(self) -> int:
        """The dead features that any graph has room for."""
        return min(self.dictionary.config.n_features, TRITON_CAPACITY)

    def _room_for(self, n_dead: int) -> int:
        """Another room than there is where more features are dead than it holds, or have long been less than half."""
        assert self._device is not None
        enough = n_dead <= self.room or self.room == self._most
        if self._device.settings.aux_weight == 0 or (enough and self._n_spare < PATIENCE):
            return self.room
        return room_for(n_dead, self._most)

    def _fit_room(self, n_dead: int) -> None:
        """Record the graph anew where it is to have another room."""
        assert self._device is not None
        settings, x_ND, since_F = self._device.settings, self._device.x_ND, self._device.since_F
        room = self._room_for(n_dead)
        if room == self.room:
            return
        if n_dead > self._most:
            _logger.warning("%d features are dead; AuxK helps the %d that are dead for longest", n_dead, self._most)
        self.room, self._n_spare, self._device = room, 0, None  # no caller holds it: its memory is free for the next
        self._device = self._captured(replace(settings, capacity=room), x_ND, since_F)

    def _make(self, x_ND: Tensor, state: "State", progress: "Progress") -> "DeviceStep":
        return self._captured(self._settings(progress), x_ND, state.tokens_since_fired_F.clone())

    def _settings(self, progress: "Progress") -> StepSettings:
        weights = self.dictionary.loss_weights(progress)
        auxiliary, main = self.plan.auxiliary, weights[self.plan.main]
        assert main == 1, "the captured step has no weight on the reconstruction"
        return StepSettings(
            k=self.plan.k,
            selection="per_row" if self.plan.selection == "per_row" else "global",
            variance=float(self.dictionary.total_variance),
            clip_norm=self.clip_norm,
            compute=self.compute,
            aux_k=self.plan.aux_k,
            aux_weight=0.0 if auxiliary is None else weights[auxiliary],
            dead_after=progress.dead_after_tokens,
            capacity=self.room,
            n_ahead=self.n_ahead,
            betas=self.optimizer.betas,
            eps=self.optimizer.eps,
        )

    def _captured(self, settings: StepSettings, x_ND: Tensor, since_F: Tensor) -> "DeviceStep":
        from saetools.kernels.topk_step import triton as kernels

        parameters = {name: p.detach() for name, p in self.optimizer.parameters.items()}
        first, second = four(self.optimizer.first), four(self.optimizer.second)
        n_rows, n_steps = len(x_ND), self.optimizer.n_steps
        step = kernels.DeviceStep(
            four(parameters), first, second, since_F, settings, n_rows, n_steps, row_dtype=torch.float32
        )
        if x_ND.device.type == "cuda":
            step.load(x_ND)
            step.capture()
        return step

    def _result(self, record: StepRecord) -> StepResult:
        """As the other steps give it, on the CPU; the state is that after all batches of the reading."""
        assert self._state is not None and self._device is not None
        losses = {self.plan.main: record.reconstruction}
        if self.plan.auxiliary is not None:
            losses[self.plan.auxiliary] = record.auxk
        loss = record.reconstruction + self._device.settings.aux_weight * record.auxk
        return StepResult(
            loss=torch.tensor(loss, dtype=torch.float32, device="cpu"),
            losses={name: torch.tensor(value, dtype=torch.float32, device="cpu") for name, value in losses.items()},
            l0=torch.tensor(record.l0, dtype=torch.float64, device="cpu"),
            n_dead=torch.tensor(record.n_dead, device="cpu"),
            grad_norm=torch.tensor(record.norm, dtype=torch.float32, device="cpu"),
            applied=torch.tensor(record.applied, device="cpu"),
            state=self._state,
        )
