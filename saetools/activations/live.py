"""Rows made while training: tokens go through the host, kept tokens become rows."""

from collections.abc import Generator, Sequence
from threading import Lock

import torch
from torch import Tensor

from saetools.activations.base import GRAD, ActivationBatch, Counts, NumberedBatches, digest
from saetools.activations.calibration import drop_outliers, outlier_norm, outlier_rule
from saetools.config import Dtype
from saetools.errors import ConfigError, DataError
from saetools.lm.base import Host
from saetools.records import Calibration, PointSpec
from saetools.text.base import TokenBatch
from saetools.text.packing import TokenPlan

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class HostPass:
    """Forward passes of one plan, shared by the readers of several points.

    A host batch is run once, up to the deepest point, and kept until each point's reader has taken it. At most
    `max_ahead` batches are kept: a reader that falls further behind costs further passes, never memory, and gets the
    same rows. `n_passes` counts. Rows of a point do not depend on which other points are asked for.

    With `gradients` each pass also goes back from the logits, and rows have the field `grad`: dL/dx, where L is the
    sum of the losses of all kept tokens of the batch, so that a row has its effect on all later tokens of its window,
    whatever else is in the batch.
    """

    def __init__(
        self,
        host: Host,
        plan: TokenPlan,
        points: Sequence[str],
        dtype: Dtype,
        max_ahead: int = 8,
        gradients: bool = False,
    ) -> None:
        self.host, self.plan, self.dtype, self.gradients = host, plan, dtype, gradients
        self.points = tuple(dict.fromkeys(host.canonical(point) for point in points))
        self.n_passes = 0
        self._max_ahead = max_ahead
        self._kept: dict[int, dict[str, ActivationBatch]] = {}  # by number; each value loses the points taken
        self._counts: dict[int, Counts] = {}
        self._tokens = plan.batches(0)
        self._next = 0
        self._lock = Lock()  # readers may be prefetching threads

    def take(self, point: str, number: int) -> tuple[ActivationBatch, Counts] | None:
        """All kept rows of a host batch at a point, outliers included, with its counts; None after the plan's end."""
        with self._lock:
            if point not in self._kept.get(number, {}) and not self._run(number):
                return None
            rows, counts = self._kept[number].pop(point), self._counts[number]
            if not self._kept[number]:
                self._forget(number)
            return rows, counts

    def _run(self, number: int) -> bool:
        if number != self._next:
            self._tokens = self.plan.batches(number)
        self._next = -1  # where it ends, or raises, another is begun: a generator that has raised gives nothing more
        tokens = next(self._tokens, None)
        if tokens is None:
            return False
        self._next = number + 1
        self._kept[number] = self._forward(tokens)
        self._counts[number] = _count(tokens, bos=self.plan.prepend_bos)
        while len(self._kept) > self._max_ahead:
            self._forget(min(self._kept.keys() - {number}))
        return True

    def _forget(self, number: int) -> None:
        del self._kept[number], self._counts[number]

    @torch.no_grad()
    def _forward(self, tokens: TokenBatch) -> dict[str, ActivationBatch]:
        device = self.host.device
        keep_BT = torch.from_numpy(tokens.keep_BT)
        document_BT = torch.from_numpy(tokens.document_B)[:, None].expand_as(keep_BT)
        where_N2 = torch.stack([document_BT[keep_BT], torch.from_numpy(tokens.position_BT)[keep_BT]], dim=1).to(device)
        ids_BT, keep_BT = torch.from_numpy(tokens.ids_BT).to(device), keep_BT.to(device)
        self.n_passes += 1
        if not self.gradients:
            x_by_point = self.host.activations(ids_BT, self.points)
            return {
                point: ActivationBatch(self._round(x_BTD[keep_BT], where_N2, "activations", point), where_N2)
                for point, x_BTD in x_by_point.items()
            }
        return {
            point: ActivationBatch(
                self._round(x_BTD[keep_BT], where_N2, "activations", point),
                where_N2,
                {GRAD: self._round(g_BTD[keep_BT], where_N2, "gradients", point)},
            )
            for point, (x_BTD, g_BTD) in self.host.activations_and_gradients(ids_BT, self.points, keep_BT).items()
        }

    def _round(self, raw_ND: Tensor, where_N2: Tensor, what: str, point: str) -> Tensor:
        """Rows in the dtype of all ways of reading; DataError at a row that is not finite, before or after."""
        x_ND = raw_ND.to(TORCH_DTYPES[self.dtype])
        finite_N = torch.isfinite(x_ND).all(dim=1)
        if bool(finite_N.all()):
            return x_ND
        row = int((~finite_N).nonzero()[0])
        document, position = where_N2[row].tolist()
        cause = (
            f"overflow in {self.dtype}; set activations.dtype to bfloat16 or float32"
            if bool(torch.isfinite(raw_ND[row]).all())
            else "are not finite; check the host's weights and host.dtype, or leave the document out of the corpus"
        )
        raise DataError(
            f"The {what} of document {self.plan.document_id(document)!r} at position {position}, point {point}, "
            f"{cause}."
        )


class LiveSource:
    """Rows of one point straight from the host (a RowSource). Rows equal those of a store, bit for bit.

    Without a calibration nothing is dropped as an outlier: this is what `calibrate` reads. `counts` sums what was
    read from this object since it was made.
    """

    def __init__(
        self,
        host: Host,
        plan: TokenPlan,
        point: str,
        dtype: Dtype,
        calibration: Calibration | None = None,
        drop_outliers: bool = True,
        host_pass: HostPass | None = None,
        gradients: bool = False,
    ) -> None:
        """`gradients` is told by `host_pass` where that is given."""
        self.host_pass = host_pass or HostPass(host, plan, [point], dtype, gradients=gradients)
        self.plan, self.dtype = plan, dtype
        self.point = host.canonical(point)
        self.spec: PointSpec = host.spec(self.point, plan.context_tokens)
        self.drops_outliers = drop_outliers
        self.counts = Counts()
        self._calibration = calibration

    @property
    def calibration(self) -> Calibration:
        if self._calibration is None:
            raise ConfigError("This source is not calibrated: use `calibrate` and `with_calibration` first.")
        return self._calibration

    @property
    def n_batches(self) -> int | None:
        return self.plan.n_batches

    @property
    def gradients(self) -> bool:
        """Whether rows have the field `grad`."""
        return self.host_pass.gradients

    def with_calibration(self, calibration: Calibration) -> "LiveSource":
        """The same source, calibrated; it shares the forward passes."""
        host_pass = self.host_pass
        return LiveSource(
            host_pass.host, self.plan, self.point, self.dtype, calibration, self.drops_outliers, host_pass
        )

    def batches(self, start: int = 0) -> NumberedBatches:
        for number, rows, counts in self.read(start):
            self.counts += counts
            yield number, rows

    def read(self, start: int = 0) -> Generator[tuple[int, ActivationBatch, Counts], None, None]:
        """`batches` with the counts of each."""
        number = start
        while (taken := self.host_pass.take(self.point, number)) is not None:
            rows, counts = taken
            if self.drops_outliers and self._calibration is not None:
                n_before = len(rows)
                rows = drop_outliers(rows, self._calibration)
                counts = counts.model_copy(update={"rows": len(rows), "outliers": n_before - len(rows)})
            yield number, rows, counts
            number += 1

    def document_id(self, number: int) -> str:
        return self.plan.document_id(number)

    @property
    def outlier_norm(self) -> float | None:
        return outlier_norm(self._calibration, self.drops_outliers)

    def fingerprint(self, calibrated: bool = True) -> str:
        rule = outlier_rule(self.outlier_norm, calibrated)
        return stream_fingerprint(self.plan.fingerprint(), self.spec, self.dtype, rule, self.gradients)


def stream_fingerprint(
    plan: str, spec: PointSpec, dtype: Dtype, outliers_above: float | str | None, gradients: bool
) -> str:
    """Fingerprint of a stream of rows, live or stored; outliers_above as of `outlier_rule`."""
    identity = {
        "plan": plan,
        "spec": spec.identity,
        "dtype": dtype,
        "outliers_above": outliers_above,
    }
    return digest(identity | ({"fields": [GRAD]} if gradients else {}))


def live_sources(
    host: Host,
    plan: TokenPlan,
    points: Sequence[str],
    dtype: Dtype,
    drop_outliers: bool = True,
    gradients: bool = False,
) -> dict[str, LiveSource]:
    """One source per point (by canonical name), not calibrated yet, all served by the same forward passes."""
    host_pass = HostPass(host, plan, points, dtype, gradients=gradients)
    return {point: LiveSource(host, plan, point, dtype, None, drop_outliers, host_pass) for point in host_pass.points}


def _count(tokens: TokenBatch, bos: bool) -> Counts:
    n_rows = int(tokens.keep_BT.sum())
    n_bos = int((tokens.document_B >= 0).sum()) if bos else 0
    return Counts(rows=n_rows, bos=n_bos, padding=tokens.keep_BT.size - n_rows - n_bos)
