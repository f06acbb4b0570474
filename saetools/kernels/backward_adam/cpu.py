"""Backward pass and update in compiled loops, feature by feature: no [F, D] gradient is ever in memory.

The code is turned feature-major; then a feature's two gradient rows are sums over its few slots, made in the
core's cache, used and forgotten. A first pass takes their norm (exact clipping), a second one makes them again and
updates. Sums over features are taken over fixed blocks, in order: results do not depend on threads.
"""

import numpy as np
import torch
from torch import Tensor

from saetools.kernels.backend import exclusive
from saetools.kernels.backward_adam.problem import Batch, ExtraRows, Rule, Weights
from saetools.kernels.compiled import inline, parallel, prange, serial
from saetools.kernels.decode.cpu import add_rows
from saetools.kernels.workspace import Workspace

BLOCK = 32
"""Features, or rows of x, per task."""


@serial
def sort_slots(values, indices, offsets, dots, ends, scale, starts, x_rows, pull_rows, minus_v, dv):
    """Counting sort of the slots in use by feature, stable; starts[f] : starts[f + 1] are those of feature f.

    minus_v = -scale * value, the factor on pull rows in dW_dec; dv = -scale * dots, the factor on x rows in dW_enc.
    """
    F, N, G = starts.shape[0] - 1, offsets.shape[0] - 1, ends.shape[0]
    starts[:] = 0
    for s in range(values.shape[0]):
        starts[indices[s] + 1] += np.int32(values[s] != 0)
    for f in range(F):
        starts[f + 1] += starts[f]
    place = starts[:F].copy()
    for n in range(N):
        for s in range(offsets[n], offsets[n + 1]):
            if values[s] != 0:
                f = indices[s]
                q = place[f]
                place[f] = q + 1
                group = 0
                while group < G - 1 and f >= ends[group]:
                    group += 1
                x_rows[q], pull_rows[q] = n, n * G + group
                minus_v[q], dv[q] = -scale * values[s], -scale * dots[s]


@inline
def feature_gradient(f, starts, x_rows, pull_rows, minus_v, dv, x, pull, extra_row, extra_enc, extra_dec, e, a):
    """e = dW_enc[f], a = dW_dec[f]; returns the part of db_enc[f] that comes through the code."""
    start, stop = starts[f], starts[f + 1]
    for d in range(e.shape[0]):
        e[d] = a[d] = np.float32(0.0)
    add_rows(a, minus_v, pull_rows, start, stop, pull)
    add_rows(e, dv, x_rows, start, stop, x)
    r = extra_row[f]
    if r >= 0:
        for d in range(e.shape[0]):
            e[d] += extra_enc[r, d]
            a[d] += extra_dec[r, d]
    s = np.float32(0.0)
    for q in range(start, stop):
        s += dv[q]
    return s


@inline
def take_off_radial(a, w):
    """a <- a - <a, w> w."""
    along = np.float32(0.0)
    for d in range(a.shape[0]):
        along += a[d] * w[d]
    for d in range(a.shape[0]):
        a[d] -= along * w[d]


@parallel
def norms(starts, x_rows, pull_rows, minus_v, dv, x, pull, W_enc, W_dec, extra_row, extra_enc, extra_dec, extra_b,
          db_enc, squares, db_dec_parts):  # fmt: skip
    """db_enc; per block of features, the squared norm of its projected gradients and its part of db_dec."""
    F, D = W_enc.shape
    for task in prange((F + BLOCK - 1) // BLOCK):
        e, a, part = np.empty(D, np.float32), np.empty(D, np.float32), db_dec_parts[task]
        part[:] = np.float32(0.0)
        total = 0.0
        for f in range(task * BLOCK, min(F, (task + 1) * BLOCK)):
            s = feature_gradient(
                f, starts, x_rows, pull_rows, minus_v, dv, x, pull, extra_row, extra_enc, extra_dec, e, a
            )
            take_off_radial(a, W_dec[f])
            square = np.float32(0.0)
            for d in range(D):
                square += e[d] * e[d] + a[d] * a[d]
                part[d] -= s * W_enc[f, d]
            if extra_row[f] >= 0:
                s += extra_b[extra_row[f]]
            db_enc[f] = s
            total += np.float64(square) + np.float64(s) * np.float64(s)
        squares[task] = total


@parallel
def column_sums(rows, factor, parts):
    """parts[t] = factor * the sum of the t-th block of rows."""
    N, D = rows.shape
    for task in prange(parts.shape[0]):
        part = parts[task]
        part[:] = np.float32(0.0)
        for n in range(task * BLOCK, min(N, (task + 1) * BLOCK)):
            for d in range(D):
                part[d] += factor * rows[n, d]


@inline
def adam_row(p, m, v, g, clip, beta1, rest1, beta2, rest2, step_size, correction, eps):
    """Adam on one row; returns the squared norm of the new p. rest = 1 - beta, rounded once."""
    square = np.float32(0.0)
    for d in range(p.shape[0]):
        gd = clip * g[d]
        md = beta1 * m[d] + rest1 * gd
        vd = beta2 * v[d] + rest2 * gd * gd
        pd = p[d] - step_size * (md / (np.sqrt(vd) * correction + eps))
        m[d], v[d], p[d] = md, vd, pd
        square += pd * pd
    return square


@parallel
def update(starts, x_rows, pull_rows, minus_v, dv, x, pull, W_enc, W_dec, b_enc, m_enc, m_dec, m_b, v_enc, v_dec, v_b,
           extra_row, extra_enc, extra_dec, db_enc,
           clip, beta1, rest1, beta2, rest2, step_size, correction, eps):  # fmt: skip
    """Make each feature's gradient rows again, project, clip, and update both rows and the bias."""
    F, D = W_enc.shape
    for task in prange((F + BLOCK - 1) // BLOCK):
        e, a = np.empty(D, np.float32), np.empty(D, np.float32)
        for f in range(task * BLOCK, min(F, (task + 1) * BLOCK)):
            feature_gradient(f, starts, x_rows, pull_rows, minus_v, dv, x, pull, extra_row, extra_enc, extra_dec, e, a)
            w = W_dec[f]
            take_off_radial(a, w)
            square = adam_row(w, m_dec[f], v_dec[f], a, clip, beta1, rest1, beta2, rest2, step_size, correction, eps)
            inverse = np.float32(1.0) / max(np.sqrt(square), np.float32(1.1754944e-38))
            for d in range(D):
                w[d] *= inverse
            adam_row(W_enc[f], m_enc[f], v_enc[f], e, clip, beta1, rest1, beta2, rest2, step_size, correction, eps)
        rows = slice(task * BLOCK, min(F, (task + 1) * BLOCK))
        adam_row(
            b_enc[rows],
            m_b[rows],
            v_b[rows],
            db_enc[rows],
            clip,
            beta1,
            rest1,
            beta2,
            rest2,
            step_size,
            correction,
            eps,
        )


def _sorted(batch: Batch, n_features: int, workspace: Workspace) -> tuple[np.ndarray, ...]:
    """starts and the four columns of `sort_slots`."""
    M, code = len(batch.code.values_M), batch.code
    starts = workspace.get("adam.starts", (n_features + 1,), torch.int32).numpy()
    rows = [workspace.get(f"adam.{name}", (M,), torch.int32).numpy() for name in ("x_rows", "pull_rows")]
    factors = [workspace.get(f"adam.{name}", (M,)).numpy() for name in ("minus_v", "dv")]
    ends = np.array(batch.ends or (n_features,), np.int64)
    sort_slots(
        code.values_M.numpy(),
        code.indices_M.numpy(),
        code.offsets_N1.numpy(),
        batch.dots_M.numpy(),
        ends,
        np.float32(batch.scale),
        *(starts, *rows, *factors),
    )
    return starts, *rows, *factors


def _extra(extra: ExtraRows | None, n_features: int, D: int, workspace: Workspace) -> tuple[np.ndarray, ...]:
    """The row of each feature among the extra ones (-1 without), and their gradients."""
    extra_row = workspace.get("adam.extra_row", (n_features,), torch.int32).fill_(-1)
    if extra is None:
        empty = np.empty((0, D), np.float32)
        return extra_row.numpy(), empty, empty, np.empty(0, np.float32)
    extra_row[extra.features_A] = torch.arange(len(extra.features_A), dtype=torch.int32)
    rows = (extra.W_enc_AD, extra.W_dec_AD, extra.b_enc_A)
    return extra_row.numpy(), *(t.contiguous().numpy() for t in rows)


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
    F, D = weights.W_enc_FD.shape
    n_blocks, n_row_blocks = -(-F // BLOCK), -(-len(batch.x_ND) // BLOCK)
    squares = np.empty(n_blocks)
    db_enc_F = workspace.get("adam.db_enc", (F,))
    parts = workspace.get("adam.parts", (n_blocks + n_row_blocks, D))
    x, pull = batch.x_ND.numpy(), batch.pull_NGD.reshape(-1, D).numpy()
    with exclusive():
        slots = _sorted(batch, F, workspace)
        extra_row, extra_enc, extra_dec, extra_b = _extra(extra, F, D, workspace)
        norms(
            *(*slots, x, pull, weights.W_enc_FD.numpy(), weights.W_dec_FD.numpy()),
            *(extra_row, extra_enc, extra_dec, extra_b, db_enc_F.numpy(), squares, parts[:n_blocks].numpy()),
        )
        column_sums(batch.pull_NGD[:, 0].numpy(), np.float32(-batch.scale), parts[n_blocks:].numpy())
        db_dec_D = _ordered_sum(parts)
        if extra is not None:
            db_dec_D += extra.b_dec_D
        norm = float(np.sqrt(squares.sum() + float(db_dec_D.double().square().sum())))
        if not norm < np.inf:
            return norm
        clip = np.float32(rule.clip_norm / max(norm, rule.clip_norm))
        b1, b2 = rule.betas
        constants = [np.float32(c) for c in (b1, 1 - b1, b2, 1 - b2, rule.step_size(), rule.correction(), rule.eps)]
        update(
            *(*slots, x, pull),
            *(t.numpy() for four in (weights, first, second) for t in (four.W_enc_FD, four.W_dec_FD, four.b_enc_F)),
            *(extra_row, extra_enc, extra_dec, db_enc_F.numpy(), clip, *constants),
        )
        adam_vector(*(f.b_dec_D.numpy() for f in (weights, first, second)), db_dec_D.numpy(), clip, *constants)
    return norm


@serial
def adam_vector(p, m, v, g, clip, beta1, rest1, beta2, rest2, step_size, correction, eps):
    """Adam on the decoder's bias."""
    adam_row(p, m, v, g, clip, beta1, rest1, beta2, rest2, step_size, correction, eps)


def _ordered_sum(parts: Tensor) -> Tensor:
    """The sum of rows, in an order that does not depend on threads."""
    return torch.from_numpy(np.add.reduce(parts.numpy(), axis=0))
