"""Backward pass and update in compiled loops: no [F, D] gradient is ever in memory.

The code is turned feature-major: a feature's gradient rows are sums over its few slots of rows of x and of pull, made
in the core's cache by `sweep`, used there and forgotten. The gradient's norm is first bounded by the norms of those
rows: only where the bound exceeds the clip does a sweep of its own take the norm before anything is updated (the
update's sweep finds it too, for the report). Sums over features are taken over fixed blocks, in order: results do not
depend on threads.
"""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.backward_adam.problem import Batch, ExtraRows, Rule, Weights
from saetools.kernels.backward_adam.slots import norms_of_rows, sort_slots, totals, weighted_sums
from saetools.kernels.backward_adam.sweep import BLOCK, adam_vector, sweep
from saetools.kernels.workspace import Workspace

SAFE = 0.999
"""A bound below this share of the clip is below it, whatever rounding did."""
LARGEST = np.finfo(np.float64).max
"""A bound above it says nothing, even where nothing is to be clipped: the norm decides whether anything is changed."""


class _Gradient:
    """The gradient of one batch, in the form from which its rows are made."""

    def __init__(
        self, weights: Weights, batch: Batch, extra: ExtraRows | None, rule: Rule, workspace: Workspace
    ) -> None:
        self.weights, self.rule = weights, rule
        self.F, self.D = weights.W_enc_FD.shape
        self.n_blocks = -(-self.F // BLOCK)
        self._take, self._take_ints = (
            lambda name, *shape: workspace.get(f"adam.{name}", shape).numpy(),
            lambda name, *shape: workspace.get(f"adam.{name}", shape, torch.int32).numpy(),
        )
        self._take_slots(batch)
        self.sources = batch.x_ND.numpy(), batch.pull_NGD.reshape(-1, self.D).numpy()
        norms = [self._take(f"norms{i}", len(rows)) for i, rows in enumerate(self.sources)]
        for rows, row_norms in zip(self.sources, norms):
            norms_of_rows(rows, row_norms)
        self.along, through_code = self._take("along", self.F), self._take("through_code", self.F)
        scale = np.float32(batch.scale)
        bound = totals(
            *(self.starts, *self.rows, *self.factors, *norms),
            *(scale, np.float32(batch.shrink), through_code, self.along),
        )
        self.db_dec = self._db_dec(through_code, batch.pull_NGD[:, 0], scale)
        self.db_enc = self._take("db_enc", self.F)
        self.db_enc[:] = through_code
        self.extra_row, self.extra_enc, self.extra_dec = self._take_extra(extra)
        self.enc_bias, self.dec_bias = (float(np.square(g, dtype=np.float64).sum()) for g in (self.db_enc, self.db_dec))
        self.bound = float(np.sqrt(bound)) + self._extra_norm()
        self.bound += (self.enc_bias + self.dec_bias + rule.elsewhere) ** 0.5

    def _take_slots(self, batch: Batch) -> None:
        M, code = len(batch.code.values_M), batch.code
        self.starts = self._take_ints("starts", self.F + 1)
        self.rows = self._take_ints("x_rows", M), self._take_ints("pull_rows", M)
        self.factors = self._take("minus_v", M), self._take("dv", M)
        sort_slots(
            *(code.values_M.numpy(), code.indices_M.numpy(), code.offsets_N1.numpy(), batch.dots_M.numpy()),
            *(batch.groups().numpy(), batch.pull_NGD.shape[1], np.float32(batch.scale), np.float32(batch.shrink)),
            *(self.starts, *self.rows, *self.factors),
        )

    def _db_dec(self, through_code: np.ndarray, pull_ND: Tensor, scale: np.float32) -> np.ndarray:
        """-scale * sum of pull - through_code W_enc."""
        n_row_blocks = -(-len(pull_ND) // BLOCK)
        parts = self._take("parts", self.n_blocks + n_row_blocks, self.D)
        weighted_sums(-through_code, self.weights.W_enc_FD.numpy(), BLOCK, parts[: self.n_blocks])
        weighted_sums(np.full(len(pull_ND), -scale), pull_ND.numpy(), BLOCK, parts[self.n_blocks :])
        return np.add.reduce(parts, axis=0)

    def _take_extra(self, extra: ExtraRows | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The extra row of each feature (-1 without) and their gradients; adds them to the biases and to along."""
        row_of = self._take_ints("extra_row", self.F)
        row_of[:] = -1
        if extra is None:
            return row_of, np.empty((0, self.D), np.float32), np.empty((0, self.D), np.float32)
        features = extra.features_A.numpy()
        row_of[features] = np.arange(len(features))
        self.db_enc[features] += extra.b_enc_A.numpy()
        self.db_dec += extra.b_dec_D.numpy()
        self.along[features] += torch.linalg.vecdot(extra.W_dec_AD, self.weights.W_dec_FD[extra.features_A]).numpy()
        return row_of, extra.W_enc_AD.contiguous().numpy(), extra.W_dec_AD.contiguous().numpy()

    def _extra_norm(self) -> float:
        return float(np.linalg.norm(self.extra_enc) + np.linalg.norm(self.extra_dec))

    def sweep(self, apply: bool, clip: float, first: Weights, second: Weights) -> float:
        """The sum of squares of the gradients of all features; with `apply` both matrices are updated."""
        constants = np.float32(clip), *_constants(self.rule)
        squares = np.empty(self.n_blocks)
        total = self.enc_bias
        for name, rows, factors, source, extra in (
            ("W_enc_FD", self.rows[0], self.factors[1], self.sources[0], self.extra_enc),
            ("W_dec_FD", self.rows[1], self.factors[0], self.sources[1], self.extra_dec),
        ):
            three = (getattr(w, name).numpy() for w in (self.weights, first, second))
            sweep(
                *(apply, name == "W_dec_FD", self.starts, rows, factors, source, *three),
                *(self.along, self.extra_row, extra, *constants, squares),
            )
            total += float(squares.sum())
        return total

    def norm(self, squares: float) -> float:
        """Of the whole gradient, from the sum of squares of these features'."""
        return (squares + self.dec_bias + self.rule.elsewhere) ** 0.5


def _constants(rule: Rule) -> tuple[np.float32, ...]:
    """beta1, 1 - beta1, beta2, 1 - beta2, step size, correction, eps."""
    b1, b2 = rule.betas
    return tuple(np.float32(c) for c in (b1, 1 - b1, b2, 1 - b2, rule.step_size(), rule.correction(), rule.eps))


def feature_squares(weights: Weights, batch: Batch, extra: ExtraRows | None, workspace: Workspace) -> float:
    """As the stock path."""
    with exclusive():
        gradient = _Gradient(weights, batch, extra, Rule(lr=0.0, n_steps=0), workspace)
        return gradient.sweep(False, 1.0, weights, weights)


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
    with exclusive():
        gradient = _Gradient(weights, batch, extra, rule, workspace)
        clip = 1.0
        if not gradient.bound <= min(SAFE * rule.clip_norm, LARGEST):
            norm = gradient.norm(gradient.sweep(False, 1.0, first, second))
            if not norm < np.inf:
                return norm
            clip = rule.clip(norm)
        norm = gradient.norm(gradient.sweep(True, clip, first, second))
        for name, g in (("b_enc_F", gradient.db_enc), ("b_dec_D", gradient.db_dec)):
            three = (getattr(w, name).numpy() for w in (weights, first, second))
            adam_vector(*three, g, np.float32(clip), *_constants(rule))
    return norm
