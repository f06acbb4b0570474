"""The way back on the GPU: per feature, both weight gradients are gathered and applied where they are.

Slots are sorted by feature, stably, so that sums have one order. A program walks a feature's slots: dW_dec += value
pull, dvalue = -scale <pull, w>, dW_enc += dvalue x; then projection, Adam on both rows, unit norm, bf16 copies. With
the dots known the columns of a row are independent, but for the norm at the end: programs are one warp wide and many.
Neither dvalues nor gradients exist in memory. A feature that fires often would keep one program busy for long: of the
sorted slots every whole window of `WINDOW` that lies inside one feature is summed beforehand by programs of its own,
and its sums are added in order. Floating-point atomics there are none.

What a step decides lies on the device (`Control`): whether the update is applied, the clip coefficient, the step size.
With the exact clip the gather runs twice, first for the norm alone; with the lagged one the last step's norm is used.
Source: the identity for b_dec is that of openai/sparse_autoencoder; the rest is our own.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton
from torch import Tensor

from saetools.kernels.backward_adam.control import (
    LAGGED_BOUND,
    SPLITS,
    Control,
    _b_dec_gradient,
    _column_sums,
    _decide,
)
from saetools.kernels.backward_adam.feature_kernels import _measure, _update, _windows
from saetools.kernels.backward_adam.problem import Batch, ExtraRows, Rule, Weights
from saetools.kernels.backward_adam.tiles import Tile, other_tiles, tiles
from saetools.kernels.by_feature.triton import Sorted, sort_slots
from saetools.kernels.triton_parts import milliseconds, next_power
from saetools.kernels.workspace import Workspace

WINDOW = 128
"""Slots of one feature that one program sums; the static number of windows bounds the memory for their sums."""
SAMPLED = 16_384
"""Features on whose copies tiles are measured: enough to fill a GPU."""
_TILES: dict[tuple[Any, ...], tuple[Tile, Tile]] = {}
"""The best tiles by shape, once measured."""


@dataclass(frozen=True)
class Extra:
    """Gradient rows of another loss, on the device: row place_F[f] of each tensor is feature f's; -1: none."""

    place_F: Tensor  # int32
    W_enc_AD: Tensor
    W_dec_AD: Tensor
    b_enc_A: Tensor
    b_dec_D: Tensor
    along_A: Tensor  # <row of W_dec_AD, atom> for each


@dataclass(frozen=True)
class Problem:
    """All tensors of the way back. `low`: bf16 copies of (W_enc, W_dec) that the forward pass reads."""

    weights: Weights
    first: Weights
    second: Weights
    x_ND: Tensor
    pull_NGD: Tensor
    values_M: Tensor
    dots_M: Tensor  # <pull, atom> of each slot
    k: int  # slots of each row; 0: rows_M says
    scale: float
    rows_M: Tensor | None = None
    group_M: Tensor | None = None
    shrink: float = 0.0
    low: tuple[Tensor, Tensor] | None = None
    extra: Extra | None = None
    since_F: Tensor | None = None  # int64, tokens since each feature fired
    dead_after: int = 0
    workspace: Workspace = field(default_factory=Workspace)

    def of_first(self, n: int) -> "Problem":
        """Copies of what the first n features have, beside the same batch."""

        def first(tensors: Weights) -> Weights:
            W_enc_FD, W_dec_FD, b_enc_F, b_dec_D = tensors
            return Weights(W_enc_FD[:n].clone(), W_dec_FD[:n].clone(), b_enc_F[:n].clone(), b_dec_D.clone())

        return replace(
            self,
            weights=first(self.weights),
            first=first(self.first),
            second=first(self.second),
            low=None if self.low is None else (self.low[0][:n].clone(), self.low[1][:n].clone()),
            since_F=None if self.since_F is None else self.since_F[:n].clone(),
            workspace=Workspace(),
        )


class Backward:
    """The kernels of one way back over fixed tensors; every method launches work and none waits for it."""

    def __init__(self, problem: Problem, control: Control, rule: Rule, shapes: tuple[Tile, Tile] | None = None) -> None:
        self.p, self.control, self.rule = problem, control, rule
        self.F, self.D = problem.weights.W_enc_FD.shape
        device = problem.x_ND.device
        self._key = (self.F, self.D, problem.k, problem.x_ND.dtype, problem.first.W_enc_FD.dtype, device)
        self.n_norms = 0  # parts of the norm that were last written
        get = problem.workspace.get
        n_windows = max(1, len(problem.values_M) // WINDOW)
        self.window_sums = get("back.windows", (n_windows, 2, self.D), torch.float32, device)
        self.window_scalars = get("back.scalars", (n_windows, 2), torch.float32, device)
        self.columns = get("back.columns", (SPLITS, self.D), torch.float32, device)
        self.g_b_dec = get("back.g_b_dec", (self.D,), torch.float32, device)
        self.use(*(shapes or _TILES.get(self._key) or tiles(self.F, self.D, device)))

    def use(self, measuring: Tile, updating: Tile) -> None:
        """Launch by these tiles from now on."""
        self.measuring, self.updating = measuring, updating
        get, device = self.p.workspace.get, self.p.x_ND.device
        n_parts = max(measuring.n_programs * self._n_blocks(measuring), updating.n_programs)
        self.norm_parts = get("back.norm", (n_parts,), torch.float32, device)
        self.b_dec_parts = get("back.b_dec", (measuring.n_programs, self.D), torch.float32, device)
        self.dead_parts = get("back.dead", (updating.n_programs,), torch.int32, device)

    def choose_tiles(self, slots: Sorted) -> None:
        """Measure which tiles are fastest at this shape, once per shape, on copies of some thousand features."""
        if self._key not in _TILES:
            n = min(self.F, SAMPLED)
            trial = Backward(self.p.of_first(n), replace(self.control, values=self.control.values.clone()), self.rule)
            trial.control.values[Control.APPLIED] = 1
            some = Sorted(slots.keys_M, slots.order_M, slots.offsets_F1[: n + 1])
            measuring, updating = other_tiles(n, self.D, self.p.x_ND.device)

            def measured(tile: Tile) -> float:
                trial.use(tile, trial.updating)
                return milliseconds(lambda: trial.measure(some, norm=True))

            def updated(tile: Tile) -> float:
                trial.use(trial.measuring, tile)
                return milliseconds(lambda: trial.update(some))

            _TILES[self._key] = min(measuring, key=measured), min(updating, key=updated)
        self.use(*_TILES[self._key])

    def _slots(self, slots: Sorted) -> tuple[Tensor, ...]:
        p, none = self.p, self.p.values_M
        rows = none if p.rows_M is None else p.rows_M
        groups = none if p.group_M is None else p.group_M
        return slots.order_M, p.values_M, rows, groups, p.pull_NGD, p.x_ND, p.dots_M

    def _extra(self) -> tuple[Tensor, ...]:
        e = self.p.extra
        if e is None:
            return (self.p.values_M,) * 5
        return e.place_F, e.W_enc_AD, e.W_dec_AD, e.b_enc_A, e.along_A

    def _n_blocks(self, tile: Tile) -> int:
        return triton.cdiv(self.D, tile.columns)

    def _constants(self, tile: Tile, registers: int | None = None) -> dict[str, int | None]:
        sizes = {"K": self.p.k, "G": self.p.pull_NGD.shape[1], "U": tile.slots, "BD": tile.columns, "WIN": WINDOW}
        return sizes | {"num_warps": tile.warps, "maxnreg": tile.registers or registers}

    def windows(self, slots: Sorted) -> None:
        """Sums of the whole windows inside one feature."""
        n = len(self.p.values_M) // WINDOW
        if n:
            _windows[(n, self._n_blocks(self.measuring))](
                slots.keys_M, *self._slots(slots), self.window_sums, self.window_scalars, self.p.scale, self.p.shrink,
                self.F, self.D, **self._constants(self.measuring),
            )  # fmt: skip

    def measure(self, slots: Sorted, *, norm: bool, emit: Weights | None = None) -> None:
        """What b_dec's gradient takes from the encoder, and (`norm`) the norm of all gradients; `emit`: write them."""
        p, none = self.p, self.p.values_M
        enc = p.weights.W_enc_FD if p.low is None else p.low[0]  # half the bytes
        out = (none,) * 3 if emit is None else (emit.W_enc_FD, emit.W_dec_FD, emit.b_enc_F)
        _measure[(self.measuring.n_programs, self._n_blocks(self.measuring))](
            slots.offsets_F1, *self._slots(slots), self.window_sums, self.window_scalars, *self._extra(), enc,
            self.control.values, self.norm_parts, self.b_dec_parts, *out, p.scale, p.shrink, self.F, self.D,
            EXTRA=p.extra is not None, NORM=norm or emit is not None, EMIT=emit is not None,
            **self._constants(self.measuring),
        )  # fmt: skip
        if norm:
            self.n_norms = self.measuring.n_programs * self._n_blocks(self.measuring)

    def update(self, slots: Sorted, *, norm: bool = False, count: bool = True) -> None:
        """Adam on all features; `norm`: the norm of their gradients too."""
        p, c, w, none = self.p, self.control, self.p.weights, self.p.values_M
        b1, b2 = self.rule.betas
        low = p.low or (none, none)
        noise = p.first.W_enc_FD.dtype == torch.bfloat16
        registers = 144 if norm else None if p.k else 128  # unasked the assembler takes 128 too, and spills two
        _update[(self.updating.n_programs,)](
            slots.offsets_F1, *self._slots(slots), self.window_sums, self.window_scalars, *self._extra(),
            w.W_dec_FD, w.W_enc_FD, w.b_enc_F, p.first.W_dec_FD, p.second.W_dec_FD, p.first.W_enc_FD,
            p.second.W_enc_FD, p.first.b_enc_F, p.second.b_enc_F, low[1], low[0],
            none if p.since_F is None else p.since_F, c.values, c.counts, self.norm_parts, self.dead_parts,
            p.scale, p.shrink, b1, b2, 1 - b1, 1 - b2, self.rule.eps, len(p.x_ND), self.F, self.D, p.dead_after,
            torch.finfo(torch.float32).tiny, EXTRA=p.extra is not None, NORM=norm, LOW=p.low is not None,
            COUNT=count and p.since_F is not None, NOISE=noise,
            CHUNKS=self._n_blocks(self.updating), **self._constants(self.updating, None if noise else registers),
        )  # fmt: skip
        if norm:
            self.n_norms = self.updating.n_programs

    def column_sums(self) -> None:
        """Sums of pull over rows, in parts."""
        N, G, D = self.p.pull_NGD.shape
        per_split = triton.cdiv(max(N, 1), SPLITS)
        block = min(128, self.measuring.columns)
        _column_sums[(SPLITS, triton.cdiv(D, block))](
            self.p.pull_NGD, self.columns, N, D, G * D, per_split, BN=min(16, next_power(per_split)), BD=block
        )

    def b_dec_gradient(self) -> None:
        """The gradient of b_dec, after `measure` and `column_sums`."""
        block, extra = min(64, self.measuring.columns), self.p.extra
        _b_dec_gradient[(triton.cdiv(self.D, block),)](
            self.b_dec_parts, len(self.b_dec_parts), self.columns, SPLITS,
            self.g_b_dec if extra is None else extra.b_dec_D, self.control.values, self.g_b_dec, self.p.scale, self.D,
            BN=32, BD=block, EXTRA=extra is not None,
        )  # fmt: skip

    def decide(self, *, lagged: bool, before: bool) -> None:
        """exact: norm, decision and b_dec's update; lagged: the decision before the update, the rest after it."""
        p, c, rule = self.p, self.control, self.rule
        b1, b2 = rule.betas
        _decide[(1,)](
            c.values, c.counts, c.powers, c.lr, c.loss, c.flag, self.norm_parts, self.n_norms, self.g_b_dec,
            p.weights.b_dec_D, p.first.b_dec_D, p.second.b_dec_D, rule.clip_norm, b1, b2, 1 - b1, 1 - b2, rule.eps,
            len(c.lr), self.D, LAGGED_BOUND, PARTS=next_power(len(self.norm_parts)), BD=max(16, next_power(self.D)),
            NORM=not (lagged and before), DECIDE=before, LAGGED=lagged, num_warps=16,
        )  # fmt: skip

    def run(self, slots: Sorted, *, lagged: bool = False) -> None:
        """The whole way back, after `column_sums`: one launch after the other."""
        self.windows(slots)
        self.measure(slots, norm=not lagged)
        self.b_dec_gradient()
        self.decide(lagged=lagged, before=True)
        self.update(slots, norm=lagged)
        if lagged:
            self.decide(lagged=True, before=False)


def problem_of(
    weights: Weights, first: Weights, second: Weights, batch: Batch, extra: ExtraRows | None, workspace: Workspace
) -> tuple[Problem, Sorted]:
    """The public operation's arguments as the kernels take them."""
    F, device, code = len(weights.W_enc_FD), batch.x_ND.device, batch.code
    keys_M = torch.where(code.values_M != 0, code.indices_M, F).int()
    rows = None
    if extra is not None:
        place_F = torch.full((F,), -1, dtype=torch.int32, device=device)
        place_F[extra.features_A] = torch.arange(len(extra.features_A), dtype=torch.int32, device=device)
        along_A = (extra.W_dec_AD * weights.W_dec_FD[extra.features_A]).sum(1)
        rows = Extra(place_F, extra.W_enc_AD, extra.W_dec_AD, extra.b_enc_A, extra.b_dec_D, along_A)
    problem = Problem(
        *(weights, first, second, batch.x_ND.contiguous(), batch.pull_NGD.contiguous()),
        *(code.values_M, batch.dots_M, 0, batch.scale),
        rows_M=code.rows(),
        group_M=batch.groups(),
        shrink=batch.shrink,
        extra=rows,
        workspace=workspace,
    )
    return problem, sort_slots(keys_M, F)


def backward_adam(
    weights: Weights,
    first: Weights,
    second: Weights,
    batch: Batch,
    rule: Rule,
    extra: ExtraRows | None,
    workspace: Workspace,
) -> float:
    """As the reference."""
    problem, slots = problem_of(weights, first, second, batch, extra, workspace)
    control = Control.make(rule, batch.x_ND.device)
    back = Backward(problem, control, rule)
    back.column_sums()
    back.run(slots)
    return float(control.values[Control.NORM])


def gradients(weights: Weights, batch: Batch, extra: ExtraRows | None, workspace: Workspace) -> Weights:
    """The gradient of each parameter, neither projected nor clipped."""
    problem, slots = problem_of(weights, weights, weights, batch, extra, workspace)
    back = Backward(problem, Control.make(Rule(0.0, 0), batch.x_ND.device), Rule(0.0, 0))
    out = Weights(*(torch.empty_like(w) for w in weights))
    back.column_sums()
    back.windows(slots)
    back.measure(slots, norm=False, emit=out)
    back.b_dec_gradient()
    out.b_dec_D.copy_(back.g_b_dec)
    return out
