"""The way back on the GPU: per feature, both weight gradients are gathered and applied where they are.

Slots are sorted by feature, stably, so that sums have one order. A program walks a feature's slots: dW_dec += value
pull, dvalue = -scale <pull, w>, dW_enc += dvalue x; then projection, Adam on both rows, unit norm, bf16 copies. With
the dots known the columns of a row are independent, but for the norm at the end: programs are narrow and many.
Neither dvalues nor gradients exist in memory. A feature that fires often would keep one program busy for long: of the
sorted slots every whole window of `WINDOW` that lies inside one feature is summed beforehand by programs of its own,
and its sums are added in order. Floating-point atomics there are none.

What a step decides lies on the device (`Control`): whether the update is applied, the clip coefficient, the step size.
With the exact clip the norm is first bounded by the norms of the rows that would be gathered: only where the bound
exceeds the clip is everything gathered twice, first for the norm alone. With the lagged clip the last step's norm is
used. Source: the identity for b_dec is that of openai/sparse_autoencoder; the rest is our own.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from saetools.kernels.backward_adam.control import (
    LAGGED_BOUND,
    SAFE,
    SPLITS,
    Control,
    _b_dec_gradient,
    _column_sums,
    _decide,
    _finish,
    _need,
)
from saetools.kernels.backward_adam.feature_kernels import _measure, _update, _windows
from saetools.kernels.backward_adam.feature_sums import _feature_sums
from saetools.kernels.backward_adam.problem import Batch, ExtraRows, Rule, Weights
from saetools.kernels.backward_adam.tiles import Tile, other_tiles, tiles
from saetools.kernels.by_feature.triton import Sorted, sort_slots
from saetools.kernels.triton_parts import fastest, n_processors, next_power
from saetools.kernels.workspace import Workspace

WINDOW = 128
"""Slots of one feature that one program sums; the static number of windows bounds the memory for their sums."""
SAMPLED = 24_576
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
    along_A: Tensor  # float32: <row of W_dec_AD, atom> of each
    enc_norm_A: Tensor  # float32: of each row of W_enc_AD
    dec_norm_A: Tensor


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
    x_norm_N: Tensor  # float32: norms of the rows of x_ND
    pull_square_NGB: Tensor  # float32: squared norms of the rows of pull, in B parts
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
        get = problem.workspace.get
        n_windows = max(1, len(problem.values_M) // WINDOW)
        self.window_sums = get("back.windows", (n_windows, 2, self.D), torch.float32, device)
        self.window_slot_sums = get("back.slot_sums", (n_windows, 4), torch.float32, device)
        self.columns = get("back.columns", (SPLITS, self.D), torch.float32, device)
        self.own_F, self.bias_F, self.along_F = (
            get(f"back.{name}", (self.F,), torch.float32, device) for name in ("own", "bias", "along")
        )
        n_sums = min(self.F, 32 * n_processors(device))
        self.bound_parts = get("back.bound", (n_sums,), torch.float32, device)
        n_splits = min(512, triton.cdiv(self.F, 64))
        self.b_dec_parts = get("back.b_dec", (n_splits, self.D), torch.float32, device)
        self.g_b_dec = get("back.g_b_dec", (self.D,), torch.float32, device)
        self._given = shapes is not None
        self.use(*(shapes or _TILES.get(self._key) or tiles(self.F, self.D, device)))

    def use(self, measuring: Tile, updating: Tile) -> None:
        """Launch by these tiles from now on."""
        self.measuring, self.updating = measuring, updating
        get, device = self.p.workspace.get, self.p.x_ND.device
        self.n_measured = measuring.n_programs * self._n_blocks(measuring)
        n_parts = max(self.n_measured, updating.n_programs)
        self.norm_parts = get("back.norm", (n_parts,), torch.float32, device)
        self.dead_parts = get("back.dead", (updating.n_programs,), torch.int32, device)

    def choose_tiles(self, slots: Sorted) -> None:
        """Measure which tiles are fastest at this shape, once per shape, on copies of some thousand features; where
        none were given."""
        if self._given:
            return
        if self._key not in _TILES:
            n = min(self.F, SAMPLED)
            some = Sorted(slots.keys_M, slots.order_M, slots.offsets_F1[: n + 1])
            control = replace(self.control, values=self.control.values.clone())
            control.values[Control.APPLIED] = control.values[Control.NEEDED] = 1
            problem, (measuring, updating) = self.p.of_first(n), other_tiles(n, self.D, self.p.x_ND.device)

            def trial(*shapes: Tile) -> Backward:
                return Backward(problem, control, self.rule, shapes)  # type: ignore[arg-type]

            trial(measuring[0], updating[0]).sums(some)
            measures = [partial(trial(tile, updating[0]).measure, some) for tile in measuring]
            updates = [partial(trial(measuring[0], tile).update, some) for tile in updating]
            _TILES[self._key] = measuring[fastest(measures)], updating[fastest(updates)]
        self.use(*_TILES[self._key])

    def _slots(self, slots: Sorted) -> tuple[Tensor, ...]:
        p, none = self.p, self.p.values_M
        rows = none if p.rows_M is None else p.rows_M
        groups = none if p.group_M is None else p.group_M
        return slots.order_M, p.values_M, rows, groups, p.pull_NGD, p.x_ND, p.dots_M

    def _extra(self) -> tuple[Tensor, ...]:
        e = self.p.extra
        return (self.p.values_M,) * 3 if e is None else (e.place_F, e.W_enc_AD, e.W_dec_AD)

    def _n_blocks(self, tile: Tile) -> int:
        return triton.cdiv(self.D, tile.columns)

    def _constants(self, tile: Tile) -> dict[str, int | None]:
        sizes = {"K": self.p.k, "G": self.p.pull_NGD.shape[1], "U": tile.slots, "BD": tile.columns, "WIN": WINDOW}
        return sizes | {"num_warps": tile.warps, "maxnreg": tile.registers}

    def windows(self, slots: Sorted) -> None:
        """Sums of the whole windows inside one feature."""
        n = len(self.p.values_M) // WINDOW
        if n:
            _windows[(n, self._n_blocks(self.measuring))](
                slots.keys_M, *self._slots(slots), self.p.x_norm_N, self.p.pull_square_NGB, self.window_sums,
                self.window_slot_sums, self.p.scale, self.p.shrink, self.F, self.D, B=self.p.pull_square_NGB.shape[2],
                **self._constants(self.measuring),
            )  # fmt: skip

    def sums(self, slots: Sorted, *, bound: bool = True) -> None:
        """db_enc and <dW_dec, w> of each feature; `bound`: parts of a bound of the squared norm of all gradients."""
        p, e, none = self.p, self.p.extra, self.p.values_M
        order, values, rows, groups, *_ = self._slots(slots)
        extra = (none,) * 5 if e is None else (e.place_F, e.b_enc_A, e.along_A, e.enc_norm_A, e.dec_norm_A)
        _feature_sums[(len(self.bound_parts),)](
            slots.offsets_F1, order, values, rows, groups, p.dots_M, p.x_norm_N, p.pull_square_NGB,
            self.window_slot_sums, *extra, self.control.values, self.own_F, self.bias_F, self.along_F,
            self.bound_parts, p.scale, p.shrink, self.F, K=p.k, G=p.pull_NGD.shape[1], B=p.pull_square_NGB.shape[2],
            U=32, WIN=WINDOW, EXTRA=e is not None, BOUND=bound, num_warps=1,
        )  # fmt: skip

    def measure(self, slots: Sorted, emit: Weights | None = None) -> None:
        """The norm of all gradients, where it is needed; `emit`: write the matrices' gradients."""
        p, none = self.p, self.p.values_M
        out = (none, none) if emit is None else (emit.W_enc_FD, emit.W_dec_FD)
        _measure[(self.measuring.n_programs, self._n_blocks(self.measuring))](
            slots.offsets_F1, *self._slots(slots), self.window_sums, *self._extra(), self.control.values, self.bias_F,
            self.along_F, self.norm_parts, *out, p.scale, p.shrink, self.F, self.D, EXTRA=p.extra is not None,
            EMIT=emit is not None, **self._constants(self.measuring),
        )  # fmt: skip

    def update(self, slots: Sorted) -> None:
        """Adam on all features, and the norm of their gradients."""
        p, c, w, none = self.p, self.control, self.p.weights, self.p.values_M
        b1, b2 = self.rule.betas
        low = p.low or (none, none)
        _update[(self.updating.n_programs,)](
            slots.offsets_F1, *self._slots(slots), self.window_sums, *self._extra(), self.bias_F, self.along_F,
            w.W_dec_FD, w.W_enc_FD, w.b_enc_F, p.first.W_dec_FD, p.second.W_dec_FD, p.first.W_enc_FD,
            p.second.W_enc_FD, p.first.b_enc_F, p.second.b_enc_F, low[1], low[0],
            none if p.since_F is None else p.since_F, c.values, c.counts, self.norm_parts, self.dead_parts,
            p.scale, p.shrink, b1, b2, 1 - b1, 1 - b2, self.rule.eps, len(p.x_ND), self.F, self.D, p.dead_after,
            torch.finfo(torch.float32).tiny, EXTRA=p.extra is not None, LOW=p.low is not None,
            COUNT=p.since_F is not None, NOISE=p.first.W_enc_FD.dtype == torch.bfloat16,
            CHUNKS=self._n_blocks(self.updating), HELD=self.updating.held, **self._constants(self.updating),
        )  # fmt: skip

    def column_sums(self) -> None:
        """Sums of pull over rows, in parts."""
        _, G, D = self.p.pull_NGD.shape
        self._sum_columns(self.p.pull_NGD, None, G * D, self.columns)

    def _sum_columns(self, rows: Tensor, weights: Tensor | None, stride: int, out: Tensor) -> None:
        N = len(rows)
        per_split, block = triton.cdiv(max(N, 1), len(out)), min(128, max(16, next_power(self.D)))
        _column_sums[(len(out), triton.cdiv(self.D, block))](
            rows, rows if weights is None else weights, out, N, self.D, stride, per_split,
            BN=min(32, next_power(per_split)), BD=block, WEIGHTED=weights is not None,
        )  # fmt: skip

    def b_dec_gradient(self) -> None:
        """The gradient of b_dec, after `sums` and `column_sums`."""
        enc = self.p.weights.W_enc_FD if self.p.low is None else self.p.low[0]  # half the bytes
        self._sum_columns(enc, self.own_F, self.D, self.b_dec_parts)
        block, extra = 16, self.p.extra
        _b_dec_gradient[(triton.cdiv(self.D, block),)](
            self.b_dec_parts, len(self.b_dec_parts), self.columns, SPLITS,
            self.g_b_dec if extra is None else extra.b_dec_D, self.control.values, self.g_b_dec, self.p.scale, self.D,
            BN=128, BD=block, EXTRA=extra is not None,
        )  # fmt: skip

    def _sizes(self, parts: Tensor) -> dict[str, int]:
        return {"PARTS": next_power(len(parts)), "BD": max(16, next_power(self.D)), "num_warps": 16}

    def need(self) -> None:
        """Whether the norm has to be measured before the update, by its bound."""
        parts, rule = self.bound_parts, self.rule
        _need[(1,)](
            self.control.values, parts, len(parts), self.g_b_dec, rule.elsewhere, self.D, SAFE * rule.clip_norm,
            **self._sizes(parts),
        )  # fmt: skip

    def decide(self, *, lagged: bool) -> None:
        """Whether the update is applied, its clip coefficient and its size."""
        c, rule = self.control, self.rule
        _decide[(1,)](
            c.values, c.counts, c.powers, c.lr, c.loss, c.flag, self.norm_parts, self.n_measured, self.g_b_dec,
            rule.elsewhere, rule.clip_norm, len(c.lr), self.D, LAGGED_BOUND, LAGGED=lagged,
            **self._sizes(self.norm_parts),
        )  # fmt: skip

    def finish(self, *, lagged: bool) -> None:
        """The norm as `update` found it, and b_dec's update."""
        p, rule = self.p, self.rule
        b1, b2 = rule.betas
        _finish[(1,)](
            self.control.values, self.norm_parts, self.updating.n_programs, self.g_b_dec, p.weights.b_dec_D,
            p.first.b_dec_D, p.second.b_dec_D, rule.elsewhere, b1, b2, 1 - b1, 1 - b2, rule.eps, self.D,
            LAGGED=lagged, **self._sizes(self.norm_parts),
        )  # fmt: skip

    def run(self, slots: Sorted, *, lagged: bool = False) -> None:
        """The whole way back, after `column_sums`: one launch after the other."""
        self.windows(slots)
        self.sums(slots, bound=not lagged)
        self.b_dec_gradient()
        if not lagged:
            self.need()
            self.measure(slots)
        self.decide(lagged=lagged)
        self.update(slots)
        self.finish(lagged=lagged)


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
        matrices = extra.W_enc_AD.contiguous(), extra.W_dec_AD.contiguous()
        biases = extra.b_enc_A.contiguous(), extra.b_dec_D.contiguous()
        along_A = (extra.W_dec_AD * weights.W_dec_FD[extra.features_A]).sum(1).float()
        rows = Extra(place_F, *matrices, *biases, along_A, *(_norms(m) for m in matrices))
    slots = code.values_M.contiguous(), batch.dots_M.contiguous()
    problem = Problem(
        *(weights, first, second, batch.x_ND.contiguous(), batch.pull_NGD.contiguous()),
        *(*slots, _norms(batch.x_ND), _norms(batch.pull_NGD).square()[:, :, None]),
        *(0, batch.scale),
        rows_M=code.rows(),
        group_M=batch.groups().contiguous(),
        shrink=batch.shrink,
        extra=rows,
        workspace=workspace,
    )
    return problem, sort_slots(keys_M, F)


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)


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


def _measured(
    weights: Weights, batch: Batch, extra: ExtraRows | None, workspace: Workspace, emit: Weights | None = None
) -> Backward:
    """The way back up to the gradients and the squares of their norms."""
    problem, slots = problem_of(weights, weights, weights, batch, extra, workspace)
    back = Backward(problem, Control.make(Rule(0.0, 0), batch.x_ND.device), Rule(0.0, 0))
    back.windows(slots)
    back.sums(slots, bound=False)
    back.measure(slots, emit)
    return back


def feature_squares(weights: Weights, batch: Batch, extra: ExtraRows | None, workspace: Workspace) -> float:
    """As the stock path, without a gradient in memory."""
    back = _measured(weights, batch, extra, workspace)
    return float(back.norm_parts[: back.n_measured].double().sum())


def gradients(weights: Weights, batch: Batch, extra: ExtraRows | None, workspace: Workspace) -> Weights:
    """The gradient of each parameter, neither projected nor clipped."""
    weights = Weights(*(w.contiguous() for w in weights))
    out = Weights(*(torch.empty_like(w) for w in weights))
    back = _measured(weights, batch, extra, workspace, out)
    back.column_sums()
    back.b_dec_gradient()
    out.b_enc_F.copy_(back.bias_F)
    out.b_dec_D.copy_(back.g_b_dec)
    return out
