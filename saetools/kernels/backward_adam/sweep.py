"""One sweep over a matrix: make its gradient row by row, take its norm and, if asked to, update it."""

import numpy as np

from saetools.kernels.compiled import inline, parallel, prange, serial

BLOCK = 32
"""Features per task."""


@inline
def adam_part(p, m, v, g, clip, beta1, rest1, beta2, rest2, step_size, correction, eps):
    """Adam on a vector with clip * g; returns the sum of the new p^2. rest = 1 - beta, rounded once."""
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
def sweep(apply, sphere, starts, sources, factors, rows, p, m, v, along, extra_row, extra,
          clip, beta1, rest1, beta2, rest2, step_size, correction, eps, squares):  # fmt: skip
    """g[f] = sum over the slots q of f of factors[q] * rows[sources[q]], plus an extra row.

    sphere: rows of p have unit norm; g -= along[f] p[f], and p[f] is divided by its norm after the update.
    squares: per block of features the sum of g^2. With `apply` Adam on p, m, v with clip * g.
    The gather is written out, four rows in flight: a call would cost as much as the few slots that a feature has.
    """
    F, D = p.shape
    for task in prange((F + BLOCK - 1) // BLOCK):
        g = np.empty(D, np.float32)
        total = 0.0
        for f in range(task * BLOCK, min(F, (task + 1) * BLOCK)):
            for d in range(D):
                g[d] = np.float32(0.0)
            q, stop = starts[f], starts[f + 1]
            while q + 4 <= stop:
                f0, f1, f2, f3 = factors[q], factors[q + 1], factors[q + 2], factors[q + 3]
                r0, r1, r2, r3 = sources[q], sources[q + 1], sources[q + 2], sources[q + 3]
                for d in range(D):
                    g[d] += (f0 * rows[r0, d] + f1 * rows[r1, d]) + (f2 * rows[r2, d] + f3 * rows[r3, d])
                q += 4
            while q < stop:
                f0, r0 = factors[q], sources[q]
                for d in range(D):
                    g[d] += f0 * rows[r0, d]
                q += 1
            r = extra_row[f]
            if r >= 0:
                for d in range(D):
                    g[d] += extra[r, d]
            if sphere:
                a = along[f]
                for d in range(D):
                    g[d] -= a * p[f, d]
            square = np.float32(0.0)
            for d in range(D):
                square += g[d] * g[d]
            total += np.float64(square)
            if apply:
                square = adam_part(p[f], m[f], v[f], g, clip, beta1, rest1, beta2, rest2, step_size, correction, eps)
                if sphere:
                    inverse = np.float32(1.0) / max(np.sqrt(square), np.float32(1.1754944e-38))
                    for d in range(D):
                        p[f, d] *= inverse
        squares[task] = total


@serial
def adam_vector(p, m, v, g, clip, beta1, rest1, beta2, rest2, step_size, correction, eps):
    """Adam on a bias."""
    adam_part(p, m, v, g, clip, beta1, rest1, beta2, rest2, step_size, correction, eps)
