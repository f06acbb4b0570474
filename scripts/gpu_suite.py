"""Check and time the GPU kernels: ceilings, correctness against float64, whole steps, and other designs beside them.

    python scripts/gpu_suite.py --out DIR [--shapes abc] [--skip-checks] [--skip-baselines]

Needs torch, triton, numpy, einops and safetensors alone. Prints a table, writes `gpu.csv` and `gpu.json` to DIR. A
kernel that fails its check is not timed. Times are medians of device events after warm-up, on random data, with batches
that rotate. No `ncu` is needed: each kernel's time is set against the bytes and products that it cannot do without, at
the rates that this very device was measured to have.
"""

import argparse
import csv
import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from saetools.kernels.auxk import cases as auxk_cases
from saetools.kernels.backward_adam import Weights
from saetools.kernels.backward_adam import cases as backward_cases
from saetools.kernels.backward_adam.tiles import Tile
from saetools.kernels.by_feature.triton import Sorted, sort_slots
from saetools.kernels.decode import cases as decode_cases
from saetools.kernels.decode_loss import cases as decode_loss_cases
from saetools.kernels.encode_topk import cases as encode_cases
from saetools.kernels.encode_topk import triton as encode
from saetools.kernels.topk_step import StepSettings
from saetools.kernels.topk_step.triton import DeviceStep
from scripts.gpu_baselines import Dense, Gathered, Sparse, State

SHAPES = {"a": (4096, 768, 24576, 32), "b": (4096, 2304, 65536, 64), "c": (8192, 4096, 131072, 64)}
GOALS_MS = {"a": 0.80, "b": 5.2, "c": 25.0}
AUX_K = 256
N_BATCHES = 4
DEVICE = "cuda"


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


def ceilings(report: Report) -> tuple[float, float]:
    """(bf16 FLOP/s, bytes/s) of this device: a large product, a large copy."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    ms = times(lambda n: torch.mm(a, b, out=out))
    flops = 2 * 8192**3 / min(ms) * 1e3
    report.add("-", "bf16 product 8192^3", "rate", "TFLOP/s", [2 * 8192**3 / t / 1e9 for t in ms])
    source = torch.randn(1 << 30, device=DEVICE)
    target = torch.empty_like(source)
    ms = times(lambda n: target.copy_(source))
    report.add("-", "copy of 4 GiB", "rate", "TB/s", [2 * source.nbytes / t / 1e9 for t in ms])
    return flops, 2 * source.nbytes / min(ms) * 1e3


# --- checks ----------------------------------------------------------------------------------------------------


def relative(got: Tensor, exact: Tensor) -> float:
    """||got - exact|| / ||exact||; NaN never passes."""
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def check_cases(name: str, work: Callable[[], None]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return ""


def check_encode(route: str, dtype: torch.dtype, N: int = 777, D: int = 768, F: int = 24576, k: int = 32) -> str:
    """Selection equals torch.topk by value on the pre-activations it saw; those are right against float64."""
    x, W = torch.randn(N, D, device=DEVICE).to(dtype), (torch.randn(F, D, device=DEVICE) / D**0.5).to(dtype)
    b = torch.randn(F, device=DEVICE) * 0.1
    pre = torch.full((N, F), torch.nan, dtype=dtype, device=DEVICE)
    best = torch.full((N, F // 32), torch.nan, device=DEVICE)
    out = (torch.full((N, k), torch.nan, device=DEVICE), *(torch.full((N, k), -7, device=DEVICE).int() for _ in "ik"))
    scratch = torch.empty(N, encode.scratch_columns(k, F), dtype=torch.int32, device=DEVICE)
    if route == "fused":
        encode.encode_group_max(x, W, b, pre, best)
        seen = pre.float()
        encode.select(pre, None, best, scratch, out, k, True)
    else:
        torch.mm(x, W.T, out=pre)
        encode.group_max(pre, b, best)
        seen = pre.float() + b
        encode.select(pre, b, best, scratch, out, k, True)
    exact = x.double() @ W.double().T + b.double()
    wanted = seen.topk(k, dim=1).values.relu()
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-5
    if not (error := relative(seen, exact)) < bound:
        return f"pre-activations are off by {error:.2e}"
    if not torch.equal(best, seen.view(N, -1, 32).amax(2)):
        return "group maxima differ"
    if not torch.equal(out[0].sort(1, descending=True).values, wanted):
        return "values differ from torch.topk's"
    if not torch.equal(seen.gather(1, out[1].long()), out[0]):
        return "indices do not belong to the values"
    return ""


def check_step(compute: str, clip: str, graphed: bool, aux: bool, hot: bool = False, n_steps: int = 50) -> str:
    """Fifty device steps against fifty plain ones by autograd in float32; `hot`: some features fire in most rows."""
    N, D, F, k = 1024, 640, 4096, 16  # D is no multiple of a tile's columns
    g = torch.Generator(DEVICE).manual_seed(1)
    W = torch.nn.functional.normalize(torch.randn(F, D, generator=g, device=DEVICE), dim=1)
    planted = torch.nn.functional.normalize(torch.randn(512, D, generator=g, device=DEVICE), dim=1)

    def batch() -> Tensor:
        code = torch.rand(N, 512, generator=g, device=DEVICE)
        return torch.where(code > 0.97, code, 0.0) @ planted * 8 + 0.1 * torch.randn(N, D, generator=g, device=DEVICE)

    bias = torch.zeros(F, device=DEVICE)
    bias[: F // 8] -= 40  # dead soon
    if hot:
        bias[F // 2 : F // 2 + 6] += 20
    weights = [Weights(W.clone(), W.clone(), bias.clone(), torch.zeros(D, device=DEVICE)) for _ in range(2)]
    moments = [Weights(*(torch.zeros_like(t) for t in weights[0])) for _ in range(4)]
    since = [torch.zeros(F, dtype=torch.int64, device=DEVICE) for _ in range(2)]
    settings = StepSettings(
        k=k, variance=float(D), clip_norm=0.05, clip=clip, compute=compute, aux_k=32,  # type: ignore[arg-type]
        aux_weight=1 / 32 if aux else 0.0, dead_after=4 * N, capacity=4096 if aux else 0, n_ahead=4,
    )  # fmt: skip
    step = DeviceStep(weights[0], *moments[:2], since[0], settings, N, row_dtype=torch.float32)
    step.load(batch())
    if graphed:
        step.capture()
    last_norm = 0.0
    for n in range(n_steps):
        x, lr = batch(), 2e-4
        step.set_rates([lr])
        step.load(x)
        if graphed:
            step.replay()
        else:
            step.launch()
        norm = plain_step(weights[1], moments[2], moments[3], since[1], x, n, lr, settings, last_norm)
        record = step.read()[-1]
        last_norm = norm
        if not record.applied:
            return f"step {n} was not applied"
        if abs(record.norm - norm) > (0.05 if compute == "bf16" else 1e-3) * norm:
            return f"step {n}: norm {record.norm}, plain {norm}"
    bound = 0.05 if compute == "bf16" else 2e-3
    for name, got, plain in zip(("W_enc", "W_dec", "b_enc", "b_dec"), weights[0], weights[1], strict=True):
        if not (error := relative(got, plain)) < (bound if name.startswith("W") else 20 * bound):
            return f"{name} is off by {error:.2e} after {n_steps} steps"
    if compute == "fp32" and (since[0] != since[1]).float().mean() > 0.01:
        return "the counters of tokens since firing differ"
    return ""


def plain_step(
    w: Weights, m: Weights, v: Weights, since: Tensor, x: Tensor, n: int, lr: float, s: StepSettings, last_norm: float
) -> float:
    """The step by autograd in float32, as training/step.PlainStep does it; the norm of the gradient."""
    leaves = [t.detach().requires_grad_() for t in w]
    W_enc, W_dec, b_enc, b_dec = leaves
    pre = (x - b_dec) @ W_enc.T + b_enc
    values, indices = pre.topk(s.k, dim=1)
    error = x - (torch.zeros_like(pre).scatter(1, indices, values.relu()) @ W_dec + b_dec)
    loss = error.square().sum(1).mean() / s.variance
    dead = (since >= s.dead_after).nonzero()[:, 0]
    if s.aux_weight and len(dead):
        values_a, places = pre[:, dead].topk(min(s.aux_k, len(dead)), dim=1)
        helped = torch.zeros_like(pre[:, dead]).scatter(1, places, values_a.relu()) @ W_dec[dead]
        residual = error.detach()
        variance = (residual - residual.mean(0)).square().sum(1).mean()
        missed = (residual - helped).square().sum(1).mean()
        loss = loss + s.aux_weight * min(len(dead) / s.aux_k, 1.0) * missed / variance
    gradients = list(torch.autograd.grad(loss, leaves))
    with torch.no_grad():
        gradients[1] -= (gradients[1] * W_dec).sum(1, keepdim=True) * W_dec
        norm = float(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt())
        clip = s.clip_norm / max(norm if s.clip == "exact" else last_norm, s.clip_norm)
        b1, b2 = s.betas
        for p, first, second, g in zip(w, m, v, gradients, strict=True):
            first.mul_(b1).add_(g * clip, alpha=1 - b1)
            second.mul_(b2).addcmul_(g * clip, g * clip, value=1 - b2)
            denominator = (second / (1 - b2 ** (n + 1))).sqrt() + s.eps
            p.data.addcdiv_(first, denominator, value=-lr / (1 - b1 ** (n + 1)))
        w.W_dec_FD.data.div_(w.W_dec_FD.norm(dim=1, keepdim=True))
        fired = torch.zeros_like(since, dtype=torch.bool)
        fired[indices[values > 0]] = True
        since.copy_(torch.where(fired, 0, since + len(x)))
    return norm


def check_refusal() -> str:
    """A batch that is not finite changes nothing, under either clip, and its record says so."""
    N, D, F, k = 256, 64, 512, 8
    for clip in ("exact", "lagged"):
        W = torch.nn.functional.normalize(torch.randn(F, D, device=DEVICE), dim=1)
        weights = Weights(W.clone(), W.clone(), torch.zeros(F, device=DEVICE), torch.zeros(D, device=DEVICE))
        moments = [Weights(*(torch.zeros_like(t) for t in weights)) for _ in range(2)]
        settings = StepSettings(k=k, variance=float(D), clip=clip)  # type: ignore[arg-type]
        since = torch.zeros(F, dtype=torch.int64, device=DEVICE)
        step = DeviceStep(weights, *moments, since, settings, N, row_dtype=torch.float32)
        for bad in (None, torch.nan, torch.inf, None):
            x = torch.randn(N, D, device=DEVICE)
            if bad is not None:
                x[N // 2, D // 3] = bad
            before = [t.clone() for t in (*weights, *moments[0], *moments[1], since)]
            step.set_rates([1e-3])
            step.load(x)
            step.launch()
            applied = step.read()[-1].applied
            same = all(torch.equal(a, b) for a, b in zip(before, (*weights, *moments[0], *moments[1], since)))
            if applied != (bad is None) or same != (bad is not None):
                return f"{clip} clip, {bad}: applied {applied}, unchanged {same}"
    return ""


def all_checks() -> dict[str, Callable[[], str]]:
    """Every check by name."""
    checks: dict[str, Callable[[], str]] = {}
    for name, module in (
        ("encode_topk", encode_cases),
        ("decode", decode_cases),
        ("decode_loss", decode_loss_cases),
        ("backward_adam", backward_cases),
        ("auxk", auxk_cases),
    ):
        checks[f"{name} cases"] = lambda m=module, n=name: check_cases(n, lambda: m.verify("triton", device=DEVICE))
    checks["encode cublas bf16"] = lambda: check_encode("cublas", torch.bfloat16)
    checks["encode cublas fp32"] = lambda: check_encode("cublas", torch.float32)
    checks["encode fused bf16"] = lambda: check_encode("fused", torch.bfloat16)
    for compute in ("fp32", "bf16"):
        for clip in ("exact", "lagged"):
            checks[f"50 steps {compute} {clip} graph AuxK"] = lambda c=compute, q=clip: check_step(c, q, True, True)
    checks["50 steps fp32 exact eager, hot features"] = lambda: check_step("fp32", "exact", False, False, hot=True)
    checks["bad batches are refused"] = check_refusal
    return checks


# --- timings ---------------------------------------------------------------------------------------------------


def random_step(shape: str, settings: dict[str, Any], dead: float = 0.0, moments: torch.dtype = torch.float32) -> Any:
    """(a step at this shape with random weights, batches to rotate)."""
    N, D, F, k = SHAPES[shape]
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
        weights.W_enc_FD[: int(F * dead)] *= 0.3  # they never reach the k largest, and half of them are positive
        since[: int(F * dead)] = 1 << 40
    base = StepSettings(k=k, variance=float(D), aux_k=AUX_K, dead_after=1 << 30)
    step = DeviceStep(weights, first, second, since, StepSettings(**(base.__dict__ | settings)), N)
    step.set_rates([1e-4] * step.settings.n_ahead)
    batches = [torch.randn(N, D, device=DEVICE, dtype=torch.bfloat16) for _ in range(N_BATCHES)]
    step.load(batches[0])
    return step, batches


def time_kernels(report: Report, shape: str, flops: float, rate: float) -> None:
    """Each kernel by itself, with its floor."""
    N, D, F, k = SHAPES[shape]
    step, batches = random_step(shape, {})
    rows = encode.chunk_rows(N, F, 2, step.settings.chunk_bytes)
    step.capture()
    print(f"   tiles: {step.backward.measuring}, {step.backward.updating}")
    pre = step.workspace.get("encode.pre", (rows, F), torch.bfloat16, step.device)
    best = step.workspace.get("encode.max", (rows, F // 32), torch.float32, step.device)
    scratch = step.workspace.get("encode.groups", (rows, encode.scratch_columns(k, F)), torch.int32, step.device)
    W, b = step.low[0], step.weights.b_enc_F
    x = [t[:rows] for t in batches]
    out = tuple(t[:rows] for t in (step.values_NK, step.indices_NK, step.keys_NK))
    per_step = N / rows

    def kernel(what: str, floor_ms: float, work: Callable[[int], Any], times_in_step: float = 1.0) -> float:
        ms = [t * times_in_step for t in times(work)]
        return report.add(shape, what, "time", "ms", ms, f"floor {floor_ms:.3f} ms, {floor_ms / min(ms):.0%} of it")

    product = 2 * N * D * F / flops * 1e3
    one_read = 2 * N * F / rate * 1e3
    kernel("encode: cuBLAS product", product, lambda n: torch.mm(x[n % len(x)], W.T, out=pre), per_step)
    kernel("encode: group maxima", one_read, lambda n: encode.group_max(pre, b, best), per_step)
    fused = kernel("encode: product and maxima in one kernel", product,
                   lambda n: encode.encode_group_max(x[n % len(x)], W, b, pre, best), per_step)  # fmt: skip
    del fused
    torch.mm(x[0], W.T, out=pre)
    encode.group_max(pre, b, best)
    gathered = 64 * k * N + 4 * N * F / 32
    select = kernel(
        "select", gathered / rate * 1e3, lambda n: encode.select(pre, b, best, scratch, out, k, True), per_step
    )
    both = [
        t * per_step
        for t in times(lambda n: (encode.group_max(pre, b, best), encode.select(pre, b, best, scratch, out, k, True)))
    ]
    theirs = [t * per_step for t in times(lambda n: torch.topk(pre, k, dim=1), repeats=7)]
    report.add(shape, "selection: group maxima and select", "time", "ms", both)
    report.add(shape, "torch.topk on the same bf16 tensor", "time", "ms", theirs)
    ratio = statistics.median(theirs) / statistics.median(both)
    report.add(shape, "selection against torch.topk", "ratio", "x", [ratio], "goal 6")
    report.add(shape, "select alone against torch.topk", "ratio", "x", [statistics.median(theirs) / select])
    step.encode()
    step.control.values[0] = 1  # applied
    kernel("decode, loss, residual and dots", 4 * N * k * D / rate * 1e3, lambda n: step.decode())
    kernel("sort", 32 * N * k / rate * 1e3, lambda n: sort_slots(step.keys_NK.view(-1), F))
    slots = sort_slots(step.keys_NK.view(-1), F)
    back = step.backward
    kernel("column sums", 2 * N * D / rate * 1e3, lambda n: back.column_sums())
    kernel("windows", 0.0, lambda n: back.windows(slots))
    gathers, parameters = 4 * N * k * D, 2 * F * D
    kernel("dots", 2 * N * k * D / rate * 1e3, lambda n: step.dots())
    kernel(
        "measure: norm and db_enc W_enc", (gathers + parameters) / rate * 1e3, lambda n: back.measure(slots, norm=True)
    )
    kernel("measure: db_enc W_enc", parameters / rate * 1e3, lambda n: back.measure(slots, norm=False))
    kernel("update", (gathers + 26 * parameters) / rate * 1e3, lambda n: back.update(slots))
    kernel("update, with the norm", (gathers + 26 * parameters) / rate * 1e3, lambda n: back.update(slots, norm=True))
    kernel("b_dec gradient", 0.0, lambda n: back.b_dec_gradient())
    kernel("decide", 0.0, lambda n: back.decide(lagged=False, before=True))


def time_auxk(report: Report, shape: str) -> None:
    """AuxK at 10 % dead by itself, and its parts."""
    F = SHAPES[shape][2]
    step, _ = random_step(shape, {"aux_weight": 1 / 32, "capacity": int(F * 0.1)}, 0.1)
    step.launch()
    a, x = step.auxk, step.centred_ND
    report.add(shape, "AuxK at 10 % dead", "time", "ms", times(lambda n: step.help_dead()))
    report.add(shape, "AuxK: list of the dead", "time", "ms", times(lambda n: a.find_dead(step.since_F, 1 << 30)))
    report.add(shape, "AuxK: product", "time", "ms", times(lambda n: torch.mm(x, a.rows_enc_CD.T, out=a.code_NC)))
    report.add(shape, "AuxK: selection", "time", "ms", times(lambda n: a.keep_largest()))
    report.add(
        shape, "AuxK: gradient product", "time", "ms", times(lambda n: torch.mm(a.dcode_NC.T, x, out=a.extra.W_enc_AD))
    )


def tune(report: Report, shape: str) -> None:
    """Other launches of the feature kernel."""
    _, D, F, k = SHAPES[shape]
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    step, _ = random_step(shape, {})
    step.launch()
    slots = sort_slots(step.keys_NK.view(-1), F)
    for mega in (32, 64, 128, 512):
        step.settings = replace(step.settings, chunk_bytes=mega << 20)
        report.add(
            shape, f"encode, {mega} MiB of pre-activations", "time", "ms", times(lambda n: step.encode(), repeats=7)
        )
    rows = encode.chunk_rows(len(step.x_ND), F, 2, step.settings.chunk_bytes)
    pre = step.workspace.get("encode.pre", (rows, F), torch.bfloat16, step.device)
    best = step.workspace.get("encode.max", (rows, F // 32), torch.float32, step.device)
    out = tuple(t[:rows] for t in (step.values_NK, step.indices_NK, step.keys_NK))
    for block, warps in ((1024, 1), (2048, 2), (2048, 4), (4096, 4), (4096, 8), (8192, 8)):
        ms = times(lambda n, b=block, w=warps: encode.group_max(pre, step.weights.b_enc_F, best, b, w))
        report.add(shape, f"group maxima: {block} columns, {warps} warps", "time", "ms", ms)
    none = Sorted(slots.keys_M, slots.order_M, torch.zeros_like(slots.offsets_F1))
    report.add(shape, "update without slots", "time", "ms", times(lambda n: step.backward.update(none)))
    report.add(shape, "measure without slots", "time", "ms", times(lambda n: step.backward.measure(none, norm=True)))
    scratch = torch.empty(rows, encode.scratch_columns(k, F), dtype=torch.int32, device=DEVICE)
    for warps in (1, 2, 4, 8):
        ms = times(lambda n, w=warps: encode.select(pre, step.weights.b_enc_F, best, scratch, out, k, True, warps=w))
        report.add(shape, f"select {rows} rows: {warps} warps", "time", "ms", ms)
    for columns, warps, slots_at_once, per in (
        (256, 1, 2, 24), (256, 1, 8, 24), (512, 1, 4, 24), (512, 1, 2, 24), (1024, 2, 4, 24), (512, 1, 8, 24),
    ):  # fmt: skip
        tile = Tile(columns, warps, slots_at_once, max(1, per * processors // triton.cdiv(D, columns)))
        back = type(step.backward)(step.backward.p, step.control, step.rule, (tile, step.backward.updating))
        report.add(shape, f"measure: {tile}", "time", "ms", times(lambda n, b=back: b.measure(slots, norm=True), 5, 2))
    for columns, warps, slots_at_once, per in (
        (256, 1, 2, 64), (256, 1, 4, 64), (256, 1, 8, 64), (512, 2, 2, 64), (512, 2, 4, 64), (512, 2, 8, 64),
        (1024, 4, 2, 64), (1024, 4, 4, 64), (512, 2, 4, 512),
    ):  # fmt: skip
        tile = Tile(columns, warps, slots_at_once, min(F, processors * per))
        back = type(step.backward)(step.backward.p, step.control, step.rule, (step.backward.measuring, tile))
        report.add(shape, f"update: {tile}", "time", "ms", times(lambda n, b=back: b.update(slots), 5, 2))


def time_steps(report: Report, shape: str, floor_ms: float) -> dict[str, float]:
    """The whole step in its variants."""
    found = {}
    variants: list[tuple[str, dict[str, Any], float, torch.dtype, bool]] = [
        ("step: exact clip, graph", {}, 0.0, torch.float32, True),
        ("step: exact clip, launch by launch", {}, 0.0, torch.float32, False),
        ("step: lagged clip, graph", {"clip": "lagged"}, 0.0, torch.float32, True),
        ("step: lagged clip, bf16 moments, graph", {"clip": "lagged"}, 0.0, torch.bfloat16, True),
        ("step: exact clip, exact values, graph", {"exact_values": True}, 0.0, torch.float32, True),
        ("step: exact clip, AuxK at 10 % dead, graph", {"aux_weight": 1 / 32}, 0.1, torch.float32, True),
        (
            "step: lagged clip, AuxK at 10 % dead, graph",
            {"aux_weight": 1 / 32, "clip": "lagged"},
            0.1,
            torch.float32,
            True,
        ),
    ]
    for what, settings, dead, moments, graphed in variants:
        N, _, F, _ = SHAPES[shape]
        if dead:
            settings = settings | {"capacity": int(F * dead)}
        torch.cuda.empty_cache()
        step, batches = random_step(shape, settings, dead, moments)
        if graphed:
            step.capture()

        def run(n: int, step: Any = step, batches: Any = batches, graphed: bool = graphed) -> None:
            step.load(batches[n % len(batches)])
            if graphed:
                step.replay()
            else:
                step.launch()

        run(0)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        with step_syncs_forbidden():
            ms = times(run, repeats=12)
        note = f"{floor_ms / statistics.median(ms):.0%} of floor {floor_ms:.3f} ms, no host synchronisation"
        found[what] = report.add(shape, what, "time", "ms", ms, note)
        records = step.read()
        if not all(r.applied for r in records):
            report.add(shape, what, "not applied", "steps", [sum(not r.applied for r in records)])
        gib = torch.cuda.max_memory_allocated() / 2**30
        own = (
            sum(t.nbytes for t in (*step.weights, *step.backward.p.first, *step.backward.p.second, *(step.low or ())))
            / 2**30
        )
        report.add(shape, what, "peak memory", "GiB", [gib], f"of it weights, moments and bf16 copies {own:.2f}")
        report.add(shape, what, "tokens", "M/s", [N / found[what] / 1e3])
        del step, batches, run
    return found


def time_baselines(report: Report, shape: str, ours: dict[str, float]) -> None:
    """Other designs on the same shapes."""
    N, D, F, k = SHAPES[shape]
    for dead in (0.0, 0.1):
        own = {
            clip: ours[f"step: {clip} clip, {'AuxK at 10 % dead, ' if dead else ''}graph"]
            for clip in ("exact", "lagged")
        }
        for design in (Dense, Sparse, Gathered):
            torch.cuda.empty_cache()
            state = State.random(F, D, DEVICE)
            dead_F = None
            if dead:
                dead_F = torch.arange(F, device=DEVICE) < int(F * dead)
                state.parameters["W_enc"][dead_F] *= 0.3
            step = design(state, k, AUX_K, dead_F)
            batches = [torch.randn(N, D, device=DEVICE, dtype=torch.bfloat16) for _ in range(N_BATCHES)]
            what = f"{design.name}{', AuxK at 10 % dead' if dead else ''}"
            try:
                ms = times(lambda n, s=step, b=batches: s(b[n % len(b)]), repeats=5, warm=2)
            except Exception as error:
                report.add(shape, what, "failed", "", [0.0], f"{type(error).__name__}: {str(error)[:80]}")
                continue
            finally:
                torch.cuda.reset_peak_memory_stats()
            middle = report.add(shape, what, "time", "ms", ms)
            note = ", ".join(f"{clip} clip {middle / t:.2f}x" for clip, t in own.items())
            report.add(shape, f"ours against {what}", "ratio", "x", [middle / own["exact"]], note)
            del step, state, batches


def check_baselines() -> str:
    """The designs compute the gradient of the same loss: their first updates of the moments agree with autograd's."""
    N, D, F, k = 512, 128, 2048, 16
    state = State.random(F, D, DEVICE)
    x = torch.randn(N, D, device=DEVICE)
    moments = []
    for design in (Dense, Sparse, Gathered):
        step = design(State({name: t.clone() for name, t in state.parameters.items()}), k)
        step(x)
        moments.append(step.adam.first)
    for name in ("W_enc", "W_dec"):
        for number in (1, 2):
            if not (error := relative(moments[number][name], moments[0][name])) < 0.1:
                return f"{name} of design {number} is off by {error:.2e}"
    return ""


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for gpu.csv and gpu.json")
    parser.add_argument("--shapes", default="abc", help="which of a, b, c")
    parser.add_argument("--skip-checks", action="store_true", help="time without checking (for tuning; not reported)")
    parser.add_argument("--skip-baselines", action="store_true")
    parser.add_argument("--tune", action="store_true", help="also time other launches of the feature kernel")
    parser.add_argument("--commit", help="what to record, where git cannot tell")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device is visible to torch; without one, `pytest tests/kernels` interprets the kernels")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    known = facts(options.commit or current_commit())
    print(known, flush=True)
    report = Report()
    flops, rate = ceilings(report)
    failed = []
    if not options.skip_checks:
        for name, check in (all_checks() | {"other designs": check_baselines}).items():
            try:
                why = check()
            except Exception as error:
                why = f"{type(error).__name__}: {str(error)[:400]}"
            print(f"   {'FAILED' if why else 'ok    '} {name}{': ' + why if why else ''}", flush=True)
            if why:
                failed.append(name)
    report.write(options.out, known)
    if failed:
        print(f"not timed: {len(failed)} checks failed: {', '.join(failed)}")
        return 1
    for shape in options.shapes:
        N, D, F, k = SHAPES[shape]
        # product, one write and read of maxima, gathers of decode and of both gradients, 26 bytes a parameter
        floor = 2 * N * D * F / flops + (2 * N * F + 6 * N * k * D + 26 * 2 * F * D) / rate
        torch.cuda.empty_cache()
        time_kernels(report, shape, flops, rate)
        time_auxk(report, shape)
        report.write(options.out, known)
        if options.tune:
            torch.cuda.empty_cache()
            tune(report, shape)
        torch.cuda.empty_cache()
        ours = time_steps(report, shape, floor * 1e3)
        middle = ours["step: exact clip, graph"]
        report.add(
            shape,
            "step: exact clip, graph",
            "goal",
            "ms",
            [GOALS_MS[shape]],
            "met" if middle <= GOALS_MS[shape] else "missed",
        )
        report.write(options.out, known)
        if not options.skip_baselines:
            time_baselines(report, shape, ours)
            report.write(options.out, known)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
