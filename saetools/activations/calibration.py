"""Constants measured once on the first kept rows, before step 0: scale, variance, median norm, start of b_dec."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from saetools.activations.base import GRAD, ActivationBatch, NumberedBatches
from saetools.errors import DataError
from saetools.records import Calibration

OUTLIER_FACTOR = 10.0
"""A row is an outlier when its norm exceeds this many times the calibration's median norm."""

_CHUNK = 1024  # rows converted to float64 at a time; fixed, so that sums do not depend on how rows arrived


class Batches(Protocol):
    """What calibration needs of a source; sources that are not calibrated yet offer it too."""

    @property
    def drops_outliers(self) -> bool:
        """Whether outliers will be dropped once the median norm is known: the constants are then of the other rows."""
        ...

    @property
    def n_batches(self) -> int | None: ...

    def batches(self, start: int = 0) -> NumberedBatches:
        """(number, batch) from host batch `start` on."""
        ...


def calibrate(source: Batches, n_rows: int) -> Calibration:
    """Measure the first `n_rows` rows of a source that is not calibrated (those of one epoch, where it has fewer).

    Raises DataError where there are no rows, or where they are all equal. The record says how many were measured.
    """
    return calibrate_all([source], n_rows)[0]


def calibrate_all(sources: Sequence[Batches], n_rows: int) -> list[Calibration]:
    """`calibrate` for several points, read in step, so that sources that share a host run it once."""
    streams = [source.batches() for source in sources]
    taken: list[list[ActivationBatch]] = [[] for _ in sources]
    counts = [0] * len(sources)
    try:
        for group in zip(*streams, strict=False):
            if any(s.n_batches is not None and n >= s.n_batches for s, (n, _) in zip(sources, group, strict=True)):
                break  # a second epoch would count rows twice
            for i, (_, batch) in enumerate(group):
                piece = batch.select(slice(0, n_rows - counts[i])).to("cpu")
                taken[i].append(piece)
                counts[i] += len(piece)
            if min(counts) >= n_rows:
                break
    finally:
        for stream in streams:
            stream.close()
    found = []
    for source, pieces in zip(sources, taken, strict=True):
        rows = ActivationBatch.concatenate(pieces) if pieces else None
        x_ND, grad_ND = (rows.x_ND, rows.fields.get(GRAD)) if rows else (torch.empty(0, 0, dtype=torch.float32), None)
        found.append(measure(x_ND, grad_ND, source.drops_outliers))
    return found


def measure(x_ND: Tensor, grad_ND: Tensor | None = None, drops_outliers: bool = False) -> Calibration:
    """The record of raw rows x, and of their gradients where they have some; every sum in float64.

    scale = sqrt(D / E||x||^2), so that E||scale x||^2 = D; V = scale^2 E||x - E x||^2; median_norm = median ||x||
    of raw rows (of those that are not zero, where most are zero); b_dec_start = scale * geometric median of x;
    gradient_rms = sqrt(E g^2) over all entries.

    With `drops_outliers` the median is that of all rows, everything else of those that it keeps: the means of squares
    of a host with a few massive activations would be theirs, and say nothing of the rows that are trained on.
    """
    if len(x_ND) == 0:
        raise DataError("There are no rows to calibrate on: the source gave none. Give it documents with tokens.")
    squares_N = torch.cat([chunk.square().sum(1) for chunk in _float64(x_ND)])
    norms_N = squares_N.sqrt()
    median_norm = float(np.median(norms_N.numpy()))
    if median_norm == 0 and bool(norms_N.any()):  # as of an expert that few tokens reach: all others would be outliers
        median_norm = float(np.median(norms_N[norms_N > 0].numpy()))
    keep_N = norms_N <= OUTLIER_FACTOR * median_norm
    if drops_outliers and not bool(keep_N.all()):
        x_ND, squares_N = x_ND[keep_N], squares_N[keep_N]
        grad_ND = None if grad_ND is None else grad_ND[keep_N]
    n, d_model = x_ND.shape
    mean_D = torch.stack([chunk.sum(0) for chunk in _float64(x_ND)]).sum(0) / n
    variance = float(torch.stack([(chunk - mean_D).square().sum() for chunk in _float64(x_ND)]).sum()) / n
    if not variance > 0:
        raise DataError(
            f"All rows to calibrate on ({n}) are equal, so their variance is 0 and no loss can be normalised by it. At "
            "least two different rows are needed: check the point, the corpus or the rows file."
        )
    scale = math.sqrt(d_model / float(squares_N.mean()))
    gradient_rms = None
    if grad_ND is not None:
        gradient_rms = math.sqrt(sum(float(chunk.square().sum()) for chunk in _float64(grad_ND)) / grad_ND.numel())
    return Calibration(
        scale=scale,
        total_variance=scale**2 * variance,
        median_norm=median_norm,
        b_dec_start=tuple((scale * geometric_median(x_ND)).tolist()),
        n_rows=n,
        gradient_rms=gradient_rms,
    )


def geometric_median(x_ND: Tensor, max_iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point m_D (float64) with the least sum of distances to the rows, by Weiszfeld's iteration from their mean.

    m <- sum_n w_n x_n / sum_n w_n with w_n = 1 / (||x_n - m|| + 1e-8), until m moves by less than `tolerance` of the
    mean distance. Source: E. Weiszfeld 1937; the 1e-8 keeps the weight finite where m meets a row, as in OpenAI's
    initialisation of b_dec (arXiv 2406.04093), and unlike dictionary_learning, which has none.
    """
    median_D = torch.stack([chunk.sum(0) for chunk in _float64(x_ND)]).sum(0) / len(x_ND)
    for _ in range(max_iterations):
        total_D, weight, distance = torch.zeros_like(median_D), 0.0, 0.0
        for chunk in _float64(x_ND):
            distance_N = torch.linalg.vector_norm(chunk - median_D, dim=1)
            weight_N = 1.0 / (distance_N + 1e-8)
            total_D += weight_N @ chunk
            weight += float(weight_N.sum())
            distance += float(distance_N.sum())
        moved_D, median_D = total_D / weight - median_D, total_D / weight
        if float(torch.linalg.vector_norm(moved_D)) <= tolerance * distance / len(x_ND):
            break
    return median_D


def drop_outliers(batch: ActivationBatch, calibration: Calibration) -> ActivationBatch:
    """The rows whose norm is at most OUTLIER_FACTOR times the median norm, in order."""
    norm_N = torch.linalg.vector_norm(batch.x_ND.float(), dim=1)
    if not bool(torch.isfinite(norm_N).all()):  # squares left the range of float32, in which sums are ten times as fast
        norm_N = torch.linalg.vector_norm(batch.x_ND.double(), dim=1)
    keep_N = norm_N <= OUTLIER_FACTOR * calibration.median_norm
    return batch if bool(keep_N.all()) else batch.select(keep_N)


def outlier_norm(calibration: Calibration | None, drops: bool) -> float | None:
    """Norm of raw rows above which a source drops them; None where it drops none."""
    return OUTLIER_FACTOR * calibration.median_norm if calibration and drops else None


def outlier_rule(limit: float | None, calibrated: bool) -> float | str | None:
    """What a fingerprint says of a source that drops rows above a norm: the norm, or only that there is one."""
    return limit if calibrated or limit is None else f"{OUTLIER_FACTOR:g} times the median"


def _float64(x_ND: Tensor) -> Iterator[Tensor]:
    return (chunk.double() for chunk in x_ND.split(_CHUNK))
