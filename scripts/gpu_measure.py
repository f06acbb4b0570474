"""What the parts of `gpu_suite.py` share: shapes, times by device events, rows, the device's ceilings, random steps."""

import csv
import datetime
import json
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor

from saetools.functional.statistics import firing_counts_F, least_positive, tokens_since_fired_F
from saetools.kernels.backward_adam import Weights
from saetools.kernels.plan import FusedBatch, FusedPlan
from saetools.kernels.topk_step import StepSettings
from saetools.kernels.topk_step.triton import DeviceStep

SHAPES = {"a": (4096, 768, 24576, 32), "b": (4096, 2304, 65536, 64), "c": (8192, 4096, 131072, 64)}
GOALS_MS = {"a": 0.80, "b": 5.2, "c": 25.0}
AUX_K = 256
LR = 1e-6
"""So small that random weights stay random, and a batch's threshold is near the last one's, as in training."""
N_BATCHES = 4
DEVICE = "cuda"
Checks = dict[str, Callable[[], str | None]]
"""By name: what is wrong, if anything, as text or as an exception."""


@dataclass(frozen=True)
class Counters:
    """What a dictionary's training state is to a step; the thresholds of mutual choice are merely summed."""

    tokens_since_fired_F: Tensor
    threshold_sum: Tensor
    threshold_weight: Tensor

    @staticmethod
    def fresh(n_features: int) -> "Counters":
        zero = torch.zeros((), dtype=torch.float64, device=DEVICE)
        return Counters(torch.zeros(n_features, dtype=torch.int64, device=DEVICE), zero, zero)

    def observe(self, value: Tensor) -> "Counters":
        return replace(self, threshold_sum=self.threshold_sum + value, threshold_weight=self.threshold_weight + 1)


class Trained:
    """What a dictionary is to the fused and to the captured step; aux_k = 0: without AuxK."""

    def __init__(self, weights: Weights, k: int, variance: float, selection: str = "per_row", aux_k: int = 0) -> None:
        names = ("W_enc_FD", "W_dec_FD", "b_enc_F", "b_dec_D")
        self.parameters, self.W_enc_FD = dict(zip(names, weights, strict=True)), weights.W_enc_FD
        self.d_model = weights.W_enc_FD.shape[1]
        self.k, self.total_variance = k, torch.tensor(variance, dtype=torch.float64)
        self.selection, self.aux_k = selection, aux_k
        self.config, self.device = SimpleNamespace(n_features=len(weights.W_enc_FD)), weights.W_enc_FD.device

    def fused_plan(self) -> FusedPlan:
        auxiliary = {"auxiliary": "auxk", "aux_k": self.aux_k} if self.aux_k else {}
        return FusedPlan(self.selection, self.k, **auxiliary)  # type: ignore[arg-type]

    def loss_weights(self, progress: object) -> dict[str, float]:
        return {"reconstruction": 1.0, **({"auxk": 1 / 32} if self.aux_k else {})}

    def fused_batch(self, x_ND: Tensor, fields: object, state: Counters, progress: Any) -> Any:
        helped_A = (state.tokens_since_fired_F >= progress.dead_after_tokens).nonzero()[:, 0]
        return state, FusedBatch(self.selection, helped_A)  # type: ignore[arg-type]

    def fused_state(self, state: Counters, code: Any, reached_F: object) -> Counters:
        since_F = tokens_since_fired_F(state.tokens_since_fired_F, firing_counts_F(code), len(code))
        return replace(state, tokens_since_fired_F=since_F).observe(least_positive(code.values))


@dataclass(frozen=True)
class Ceilings:
    """What this device was measured to reach, and what cannot be done in less."""

    flops: float  # per second, of a bf16 product
    rate: float  # bytes per second

    def product_ms(self, shape: str) -> float:
        N, D, F, _ = SHAPES[shape]
        return 2 * N * D * F / self.flops * 1e3

    def bytes_ms(self, n_bytes: float) -> float:
        return n_bytes / self.rate * 1e3

    def step_ms(self, shape: str) -> float:
        """The product, one write and read of what it gives, gathers of decode and of both gradients, 26 bytes a
        parameter."""
        N, D, F, k = SHAPES[shape]
        return self.product_ms(shape) + self.bytes_ms(2 * N * F + 6 * N * k * D + 26 * 2 * F * D)


class Report:
    """Rows of (shape, what, metric, unit, min, median, note), printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, shape: str, what: str, metric: str, unit: str, values: list[float], note: str = "") -> float:
        low, middle = min(values), statistics.median(values)
        row = {"shape": shape, "what": what, "metric": metric, "unit": unit}
        self.rows.append(row | {"min": round(low, 5), "median": round(middle, 5), "note": note})
        print(f"{shape:2s} {what:44s} {metric:16s} {low:10.4f} {middle:10.4f} {unit:8s} {note}", flush=True)
        return middle

    def median_ms(self, shape: str, what: str) -> float:
        """Of a time that was added."""
        found = [r["median"] for r in self.rows if (r["shape"], r["what"], r["metric"]) == (shape, what, "time")]
        if not found:
            raise LookupError(f"{what!r} was not timed at {shape}")
        return float(found[-1])

    def write(self, out: Path, facts: dict[str, Any]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "gpu.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*self.rows[0], *facts])
            writer.writeheader()
            writer.writerows(row | facts for row in self.rows)
        (out / "gpu.json").write_text(json.dumps({"facts": facts, "rows": self.rows}, indent=1))


def times(work: Callable[[int], Any], repeats: int = 15, warm: int = 3) -> list[float]:
    """Milliseconds of each run, by device events; the argument counts runs, to rotate buffers by."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for n in range(warm):
        work(n)
    for n, (start, end) in enumerate(events):
        start.record()
        work(n)
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


@contextmanager
def step_syncs_forbidden() -> Iterator[None]:
    """Any synchronisation of the host raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def ceilings(report: Report) -> Ceilings:
    """Of this device: a large product, a large copy."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    ms = times(lambda n: torch.mm(a, b, out=out))
    flops = 2 * 8192**3 / min(ms) * 1e3
    report.add("-", "bf16 product 8192^3", "rate", "TFLOP/s", [2 * 8192**3 / t / 1e9 for t in ms])
    source = torch.randn(1 << 30, device=DEVICE)
    target = torch.empty_like(source)
    ms = times(lambda n: target.copy_(source))
    report.add("-", "copy of 4 GiB", "rate", "TB/s", [2 * source.nbytes / t / 1e9 for t in ms])
    return Ceilings(flops, 2 * source.nbytes / min(ms) * 1e3)


def relative(got: Tensor, exact: Tensor) -> float:
    """||got - exact|| / ||exact||; NaN never passes."""
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def random_step(
    shape: str,
    settings: dict[str, Any],
    dead: float = 0.0,
    moments: torch.dtype = torch.float32,
    n_features: int | None = None,
) -> Any:
    """(a step at this shape with random weights, batches to rotate)."""
    N, D, F, k = SHAPES[shape]
    F = n_features or F
    W = torch.nn.functional.normalize(torch.randn(F, D, device=DEVICE), dim=1)
    weights = Weights(W.clone(), W, torch.zeros(F, device=DEVICE), torch.zeros(D, device=DEVICE))
    first, second = (
        Weights(
            *(torch.zeros(F, D, dtype=moments, device=DEVICE) for _ in "ed"),
            *(torch.zeros_like(t) for t in list(weights)[2:]),
        )
        for _ in "mv"
    )
    since = torch.zeros(F, dtype=torch.int64, device=DEVICE)
    if dead:
        dead_F = dead_features(F, dead)
        weights.W_enc_FD[dead_F] *= 0.3  # they never reach the k largest, and half of them are positive
        since[dead_F] = 1 << 40
    base = StepSettings(k=k, variance=float(D), aux_k=AUX_K, dead_after=1 << 30)
    step = DeviceStep(weights, first, second, since, StepSettings(**(base.__dict__ | settings)), N)
    step.set_rates([LR] * step.settings.n_ahead)
    batches = [torch.randn(N, D, device=DEVICE, dtype=torch.bfloat16) for _ in range(N_BATCHES)]
    step.load(batches[0])
    return step, batches


def dead_features(n_features: int, share: float) -> Tensor:
    """Which of them are dead: as many as the share says, all over them."""
    numbers = torch.arange(n_features, device=DEVICE)
    return (numbers * share).floor() != ((numbers - 1) * share).floor()


def current_commit() -> str:
    """What is checked out, where git can tell."""
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def facts(commit: str) -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }
