"""What the sweeps read: slots in feature order and sums per feature; and what bounds the gradient's norm."""

import numpy as np

from saetools.kernels.compiled import parallel, prange, serial


@serial
def sort_slots(values, indices, offsets, dots, groups, G, scale, shrink, starts, x_rows, pull_rows, minus_v, dv):
    """Counting sort of the slots in use by feature, stable; starts[f] : starts[f + 1] are those of feature f.

    minus_v = -scale * value, the factor on pull rows in dW_dec; dv = dL/dvalue, the factor on x rows in dW_enc.
    """
    F, N = starts.shape[0] - 1, offsets.shape[0] - 1
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
                x_rows[q], pull_rows[q] = n, n * G + np.int64(groups[s])
                minus_v[q], dv[q] = -scale * values[s], shrink * values[s] - scale * dots[s]


@serial
def totals(starts, x_rows, pull_rows, minus_v, dv, x_norms, pull_norms, scale, shrink, through_code, along):
    """Per feature the sum of dv and along = <dW_dec, w>; returns a bound of the gradients' squared norm.

    <sum of minus_v pull, w> = sum of minus_v dots, and dots = (shrink * value - dv) / scale are there already.
    ||sum of c_q row_q|| <= sum of |c_q| ||row_q||, and projecting makes nothing longer.
    """
    inverse = np.float32(-1.0) / scale if scale != 0 else np.float32(0.0)
    bound = 0.0
    for f in range(starts.shape[0] - 1):
        s, inner, enc, dec = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for q in range(starts[f], starts[f + 1]):
            s += dv[q]
            inner += minus_v[q] * (dv[q] - shrink * minus_v[q] * inverse)
            enc += abs(dv[q]) * x_norms[x_rows[q]]
            dec += abs(minus_v[q]) * pull_norms[pull_rows[q]]
        through_code[f], along[f] = s, inner * inverse
        bound += np.float64(enc) * np.float64(enc) + np.float64(dec) * np.float64(dec)
    return bound


@parallel
def norms_of_rows(rows, norms):
    """norms[n] = ||rows[n]||."""
    N, D = rows.shape
    for task in prange((N + 63) // 64):
        for n in range(task * 64, min(N, (task + 1) * 64)):
            square = np.float32(0.0)
            for d in range(D):
                square += rows[n, d] * rows[n, d]
            norms[n] = np.sqrt(square)


@parallel
def weighted_sums(factors, rows, block, parts):
    """parts[t] = the sum over the t-th block of rows of factor * row."""
    N, D = rows.shape
    for task in prange(parts.shape[0]):
        for d in range(D):
            parts[task, d] = np.float32(0.0)
        for n in range(task * block, min(N, (task + 1) * block)):
            c = factors[n]
            for d in range(D):
                parts[task, d] += c * rows[n, d]
