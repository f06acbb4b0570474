"""The timings of `gpu_suite.py`: each kernel beside its floor, whole steps, the other selections, other designs."""

import math
import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from saetools.kernels.backward_adam import Weights
from saetools.kernels.backward_adam.control import Control
from saetools.kernels.by_feature.triton import sort_slots
from saetools.kernels.encode_topk import triton as encode
from saetools.kernels.global_topk import triton as global_kernels
from saetools.kernels.matching_pursuit import triton as pursuit
from saetools.kernels.per_feature_topm import triton as per_feature
from saetools.kernels.workspace import Workspace
from saetools.training.captured import CapturedStep, room_for
from saetools.training.fused import FusedStep
from saetools.training.optim import Adam
from scripts.gpu_baselines import Dense, Gathered, Sparse, State
from scripts.gpu_measure import (
    AUX_K,
    DEVICE,
    GOALS_MS,
    LR,
    N_BATCHES,
    SHAPES,
    Ceilings,
    Counters,
    Report,
    Trained,
    dead_features,
    random_step,
    step_syncs_forbidden,
    times,
)

STEP = {
    ("exact", 0.0): "step: exact clip, graph",
    ("lagged", 0.0): "step: lagged clip, graph",
    ("exact", 0.1): "step: exact clip, AuxK at 10 % dead, graph",
    ("lagged", 0.1): "step: lagged clip, AuxK at 10 % dead, graph",
}
"""By clip and share of dead features, what others are set against."""


def time_kernels(report: Report, shape: str, device: Ceilings) -> None:
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
    out = tuple(t.view(-1, k)[:rows] for t in (step.values_M, step.indices_M, step.keys_M))
    given: Any = pre, b, best, scratch, out, k, True
    per_step = N / rows

    def kernel(what: str, floor_ms: float, work: Callable[[int], Any], times_in_step: float = 1.0) -> float:
        ms = [t * times_in_step for t in times(work)]
        return report.add(shape, what, "time", "ms", ms, f"floor {floor_ms:.3f} ms, {floor_ms / min(ms):.0%} of it")

    floor = device.bytes_ms
    product, one_read = device.product_ms(shape), floor(2 * N * F)
    kernel("encode: cuBLAS product", product, lambda n: torch.mm(x[n % len(x)], W.T, out=pre), per_step)
    kernel("encode: group maxima", one_read, lambda n: encode.group_max(pre, b, best), per_step)
    kernel(
        "encode: product and maxima in one kernel", product,
        lambda n: encode.encode_group_max(x[n % len(x)], W, b, pre, best), per_step,
    )  # fmt: skip
    torch.mm(x[0], W.T, out=pre)
    ours = kernel("select, with the maxima", one_read, lambda n: encode.select(*given), per_step)
    theirs = [t * per_step for t in times(lambda n: torch.topk(pre, k, dim=1), repeats=7)]
    report.add(shape, "torch.topk on the same bf16 tensor", "time", "ms", theirs)
    report.add(shape, "selection against torch.topk", "ratio", "x", [statistics.median(theirs) / ours], "goal 6")
    floor_ms = floor(64 * k * N + 4 * N * F / 32)
    kernel("select, by maxima that are given", floor_ms, lambda n: encode.select(*given, given=True), per_step)
    step.encode()
    step.control.values[0] = 1  # applied
    kernel("decode, loss, residual and dots", floor(4 * N * k * D), lambda n: (step.residuals(), step.dots()))
    kernel("sort", floor(32 * N * k), lambda n: sort_slots(step.keys_M, F))
    slots = sort_slots(step.keys_M, F)
    back = step.backward
    kernel("column sums", floor(2 * N * D), lambda n: back.column_sums())
    kernel("windows", 0.0, lambda n: back.windows(slots))
    gathers, parameters = 4 * N * k * D, 2 * F * D
    kernel("dots", floor(2 * N * k * D), lambda n: step.dots())
    kernel("sums and bound", floor(20 * N * k), lambda n: back.sums(slots))
    kernel("b_dec gradient: db_enc W_enc", floor(parameters), lambda n: back.b_dec_gradient())
    kernel("need", 0.0, lambda n: back.need())
    back.control.values[Control.NEEDED] = 0
    kernel("measure, not needed", 0.0, lambda n: back.measure(slots))
    back.control.values[Control.NEEDED] = 1
    kernel("measure, where it is needed", floor(gathers), lambda n: back.measure(slots))
    kernel("update", floor(gathers + 26 * parameters), lambda n: back.update(slots))
    kernel("decide", 0.0, lambda n: back.decide(lagged=False))
    kernel("finish", 0.0, lambda n: back.finish(lagged=False))


def time_crossover(report: Report, shape: str, device: Ceilings) -> None:
    """Decode by gathers and by a dense product, at few features for each that is kept."""
    k = SHAPES[shape][3]
    for per in (32, 64, 128, 256):
        torch.cuda.empty_cache()
        step, _ = random_step(shape, {}, n_features=per * k)
        step.launch()
        found = []
        for dense, form in ((False, "gathers"), (True, "a dense product")):
            step.dense = dense
            ms = times(lambda n, s=step: s.residuals())
            found.append(report.add(shape, f"decode by {form}, F = {per} k", "time", "ms", ms))
        report.add(shape, f"decode: gathers against a dense product, F = {per} k", "ratio", "x", [found[0] / found[1]])


def time_auxk(report: Report, shape: str, device: Ceilings) -> None:
    """What AuxK at 10 % dead costs a step, and its parts by themselves."""
    F = SHAPES[shape][2]
    cost = report.median_ms(shape, STEP["exact", 0.1]) - report.median_ms(shape, STEP["exact", 0.0])
    report.add(shape, "AuxK at 10 % dead, in the step", "time", "ms", [cost])
    step, _ = random_step(shape, {"aux_weight": 1 / 32, "capacity": room_for(int(F * 0.1), F)}, 0.1)
    step.launch()
    a, x = step.auxk, step.centred_ND
    report.add(shape, "AuxK: list and rows of the dead, beside encode", "time", "ms", times(lambda n: step.find_dead()))
    pre = torch.mm(x, a.rows_enc_CD.T)
    fresh = [pre.clone() for _ in range(18)]  # as many as `times` makes runs

    def select(n: int) -> None:
        a.code_NC = fresh.pop()
        a.keep_largest()

    report.add(shape, "AuxK: selection", "time", "ms", times(select))
    report.add(shape, "AuxK: product", "time", "ms", times(lambda n: torch.mm(x, a.rows_enc_CD.T, out=pre)))
    report.add(
        shape, "AuxK: gradient product", "time", "ms", times(lambda n: torch.mm(a.dcode_NC.T, x, out=a.extra.W_enc_AD))
    )


def time_selections(report: Report, shape: str, device: Ceilings) -> None:
    """Over the batch and per feature, with the product and less its time, beside torch.topk on the same tensor."""
    N, D, F, k = SHAPES[shape]
    x, W = (torch.randn(n, D, device=DEVICE, dtype=torch.bfloat16) for n in (N, F))
    b, workspace, n = torch.zeros(F, device=DEVICE), Workspace(), N * k
    room = math.ceil(global_kernels.ROOM * n)
    product = device.product_ms(shape)
    kept = global_kernels.select(x, W, b, n, None, workspace, room=room)
    guess = global_kernels.bound_of(0.97 * float(kept.threshold.view(torch.float32)), x.device)
    for what, tried in (("", None), (", with a guess", guess)):
        ms = times(lambda i, t=tried: global_kernels.select(x, W, b, n, None, workspace, room=room, bound=t), 7)
        note = f"of it the product {product:.2f}; flagged: {bool(kept.flag)}"
        whole = report.add(shape, f"selection over the batch{what}", "time", "ms", ms, note)
    report.add(shape, "selection over the batch", "candidates", "per slot", [int(kept.n_candidates) / n])
    budget = torch.full((F,), n // F, device=DEVICE)
    starts = torch.arange(F, device=DEVICE) * (n // F)
    slots = torch.zeros(n, dtype=torch.int32, device=DEVICE), torch.zeros(n, device=DEVICE)
    ms = times(
        lambda i: per_feature.select_into(x, W, b, budget, starts, slots, None, (None, None), workspace), repeats=7
    )
    each = report.add(shape, "selection per feature", "time", "ms", ms, f"of it the product {product:.2f}")
    workspace = Workspace()
    torch.cuda.empty_cache()
    for what, dim, ours, kept_per in (("over the batch", None, whole, n), ("per feature", 0, each, n // F)):
        try:
            pre = torch.mm(x, W.T)
            ms = times(lambda i, d=dim, m=kept_per, p=pre: p.view(-1).topk(m) if d is None else p.topk(m, dim=d), 3, 1)
        except torch.OutOfMemoryError:
            report.add(shape, f"torch.topk {what}", "failed", "", [0.0], "out of memory")
            continue
        theirs = report.add(shape, f"torch.topk {what}", "time", "ms", ms, "without the product")
        ratio = theirs / max(ours - product, 1e-3)
        report.add(shape, f"selection {what} against torch.topk", "ratio", "x", [ratio], "less the product")


def time_pursuits(report: Report, shape: str, device: Ceilings) -> None:
    """Steps of a pursuit by a Gram matrix and anew, and the way back."""
    N, D, F, k = SHAPES[shape]
    x = torch.randn(N, D, device=DEVICE)
    W = torch.nn.functional.normalize(torch.randn(F, D, device=DEVICE), dim=1)
    workspace, few = Workspace(), 2
    ms = times(lambda i: pursuit.matching_pursuit(x, W, None, few, "nonnegative", 0.0, True, workspace), 3, 1)
    anew = report.add(shape, "pursuit: one step, correlations anew", "time", "ms", [t / few for t in ms])
    values, indices, residual = pursuit.matching_pursuit(x, W, None, few, "nonnegative", 0.0, True, workspace)
    ms = times(lambda i: pursuit.backward(residual, values, indices, W, values, residual), 3, 1)
    report.add(shape, "pursuit: one step back", "time", "ms", [t / few for t in ms])
    if F <= pursuit.MAX_ATOMS:
        gram = torch.empty(F, F, device=DEVICE)
        report.add(shape, "pursuit: Gram matrix", "time", "ms", times(lambda i: torch.mm(W, W.T, out=gram), 3, 1))
        ms = times(lambda i: pursuit.matching_pursuit(x, W, gram, k, "nonnegative", 0.0, True, workspace), 3, 1)
        held = report.add(shape, f"pursuit: {k} steps, correlations in registers", "time", "ms", ms)
        report.add(shape, "pursuit: anew against registers", "ratio", "x", [k * anew / held], "goal 2")


def time_step(
    report: Report,
    shape: str,
    device: Ceilings,
    what: str,
    settings: dict[str, Any],
    dead: float = 0.0,
    moments: torch.dtype = torch.float32,
    graphed: bool = True,
) -> float:
    """The whole step in one of its variants: time, memory, that all were applied; it raises where the host waits."""
    N, _, F, _ = SHAPES[shape]
    room = {"capacity": room_for(int(F * dead), F)} if dead else {}
    step, batches = random_step(shape, settings | room, dead, moments)
    if graphed:
        step.capture()

    def run(n: int) -> None:
        step.set_rates([LR])
        step.load(batches[n % len(batches)])
        step.replay() if graphed else step.launch()

    run(0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    with step_syncs_forbidden():
        ms = times(run, repeats=12)
    if n_refused := sum(not record.applied for record in step.read()):
        raise RuntimeError(f"{what}: {n_refused} steps were not applied, whose time says nothing")
    floor = device.step_ms(shape)
    note = f"{floor / statistics.median(ms):.0%} of floor {floor:.3f} ms, no host synchronisation"
    middle = report.add(shape, what, "time", "ms", ms, note)
    back = step.backward.p
    own = sum(t.nbytes for t in (*step.weights, *back.first, *back.second, *(step.low or ()))) / 2**30
    gib = torch.cuda.max_memory_allocated() / 2**30
    report.add(shape, what, "peak memory", "GiB", [gib], f"of it weights, moments and bf16 copies {own:.2f}")
    report.add(shape, what, "tokens", "M/s", [N / middle / 1e3])
    return middle


def time_steps(report: Report, shape: str, device: Ceilings) -> None:
    """The step in its variants, and the goal."""
    middle = time_step(report, shape, device, STEP["exact", 0.0], {})
    met = "met" if middle <= GOALS_MS[shape] else "missed"
    report.add(shape, STEP["exact", 0.0], "goal", "ms", [GOALS_MS[shape]], met)
    lagged, helped = {"clip": "lagged"}, {"aux_weight": 1 / 32}
    for what, settings, options in (
        ("step: exact clip, every batch clipped, graph", {"clip_norm": 1e-6}, {}),
        ("step: exact clip, launch by launch", {}, {"graphed": False}),
        (STEP["lagged", 0.0], lagged, {}),
        ("step: lagged clip, bf16 moments, graph", lagged, {"moments": torch.bfloat16}),
        ("step: exact clip, exact values, graph", {"exact_values": True}, {}),
        (STEP["exact", 0.1], helped, {"dead": 0.1}),
        (STEP["lagged", 0.1], helped | lagged, {"dead": 0.1}),
    ):
        torch.cuda.empty_cache()
        time_step(report, shape, device, what, settings, **options)


def time_mutual(report: Report, shape: str, device: Ceilings) -> None:
    """Mutual choice by the captured step and by the fused one, launched one by one, which waits for the device."""
    N, D, F, k = SHAPES[shape]
    captured = time_step(report, shape, device, "step: mutual choice, exact clip, graph", {"selection": "global"})
    torch.cuda.empty_cache()
    W = torch.nn.functional.normalize(torch.randn(F, D, device=DEVICE), dim=1)
    weights = Weights(W.clone(), W, torch.zeros(F, device=DEVICE), torch.zeros(D, device=DEVICE))
    dictionary = Trained(weights, k, float(D), "global")
    step: Any = FusedStep(dictionary, Adam(dictionary.parameters), 1.0, "bf16-screen")  # type: ignore[arg-type]
    batches = [torch.randn(N, D, device=DEVICE) for _ in range(N_BATCHES)]
    state, progress = Counters.fresh(F), SimpleNamespace(dead_after_tokens=1 << 60)

    def run(n: int) -> None:
        x = batches[n % len(batches)]
        step(x, x, {}, state, progress, LR)

    middle = report.add(shape, "step: mutual choice, fused, eager", "time", "ms", times(run, repeats=7))
    report.add(shape, "mutual choice: captured against eager", "ratio", "x", [middle / captured])


def time_trainer(report: Report, shape: str, device: Ceilings) -> None:
    """The trainer's step, read when all is done and read while the next reading is under way."""
    N, D, F, k = SHAPES[shape]
    for what, read in (("after it", CapturedStep.collect), ("beside the next", CapturedStep.known)):
        torch.cuda.empty_cache()
        W = torch.nn.functional.normalize(torch.randn(F, D, device=DEVICE), dim=1)
        weights = Weights(W.clone(), W, torch.zeros(F, device=DEVICE), torch.zeros(D, device=DEVICE))
        dictionary = Trained(weights, k, float(D))
        step: Any = CapturedStep(dictionary, Adam(dictionary.parameters), 1.0, "bf16")  # type: ignore[arg-type]
        batches = [torch.randn(N, D, device=DEVICE) for _ in range(N_BATCHES)]
        state, progress = Counters.fresh(F), SimpleNamespace(dead_after_tokens=1 << 60)

        def run(
            n: int, step: Any = step, batches: Any = batches, read: Any = read, told: Any = (state, progress)
        ) -> None:
            for number in range(step.n_ahead):
                step.begin(batches[number % len(batches)], *told, LR)
            read(step)

        ms = [t / step.n_ahead for t in times(run, repeats=6, warm=2)]
        report.add(shape, f"trainer's step, each reading {what}", "time", "ms", ms)
        step.collect()
        del step, run, dictionary, weights


def time_baselines(report: Report, shape: str, device: Ceilings) -> None:
    """Other designs on the same shapes."""
    N, D, F, k = SHAPES[shape]
    for dead in (0.0, 0.1):
        own = {clip: report.median_ms(shape, STEP[clip, dead]) for clip in ("exact", "lagged")}
        for design in (Dense, Sparse, Gathered):
            torch.cuda.empty_cache()
            state = State.random(F, D, DEVICE)
            dead_F = None
            if dead:
                dead_F = dead_features(F, dead)
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
