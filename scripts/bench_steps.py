"""Training steps for `bench.py`: timed beside the encode matmul, grown over features and rows, and judged by FVU."""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bench_ops
import torch
from bench_measure import ROOT, Setting, Timing, interleaved
from bench_peers import CLOCKS, PEERS, Batches, fvu, peak_rss_mb
from bench_turns import in_turn, run_peer

from saetools.activations.calibration import measure
from saetools.dictionaries.base import Dictionary, Progress, dictionary_class
from saetools.errors import ConfigError
from saetools.records import Calibration
from saetools.training.fused import FusedStep, why_not_fused
from saetools.training.optim import Adam
from saetools.training.step import PlainStep, trained_parameters

PROVIDERS = {
    "fused fp32": ("fp32", "auto"),
    "fused bf16-screen": ("bf16-screen", "auto"),
    "fused fp32, stock torch": ("fp32", "torch"),
    "plain autograd": None,
}
SHAPE = ("d", "features", "k", "batch")
GROWING = {"features": (4096, 8192, 16384, 32768, 65536), "batch": (512, 1024, 2048, 4096, 8192)}


class StepRunner:
    """One dictionary in training on a few batches in turn."""

    def __init__(self, a: argparse.Namespace, provider: str) -> None:
        cls = dictionary_class(a.dictionary)
        if cls.trained_by != "gradient":
            raise ConfigError(
                f"dictionaries of kind {cls.kind!r} are not trained by gradients: there is no step to time"
            )
        self.dictionary: Dictionary = cls(cls.configure(n_features=a.features, k=a.k), a.d, 0)
        self.batches = Batches(a.data, a.batch, a.d)
        self.few = [self.batches(i) for i in range(4)]
        self.dictionary.calibrate_(calibration(self.few[0]))
        optimizer = Adam(trained_parameters(self.dictionary))
        kind = PROVIDERS[provider]
        if kind is None:
            self.step: Any = PlainStep(self.dictionary, optimizer, a.clip_norm)
        elif reason := why_not_fused(self.dictionary):
            raise ConfigError(reason)
        else:
            self.step = FusedStep(self.dictionary, optimizer, a.clip_norm, precision=kind[0], impl=kind[1])
        self.state = self.dictionary.initial_state()
        self.n_dead = round(a.dead * a.features)
        if self.n_dead:
            if not cls.has_encoder:
                raise ConfigError(
                    f"--dead: dictionaries of kind {cls.kind!r} have no encoder whose rows could be short"
                )
            dead_F = bench_ops.lying_apart(self.n_dead, a.features)
            with torch.no_grad():
                self.dictionary.W_enc_FD[dead_F] *= 1e-3  # never among the k largest; of AuxK's codes half are positive
            self.state.tokens_since_fired_F[dead_F] = 10**9
        self.lr = a.lr

    def __call__(self, number: int) -> None:
        self.take(number, self.few[number % len(self.few)])

    def take(self, number: int, x_ND: torch.Tensor) -> None:
        progress = Progress(step=number, n_steps=10**6, n_tokens=10**9, dead_after_tokens=10**8)
        result = self.step(x_ND, x_ND, {}, self.state, progress, self.lr)
        assert result.applied
        self.state = result.state


def providers_of(a: argparse.Namespace, *own: str) -> list[str]:
    """Those that are asked for; else our own that can train the kind."""
    if a.providers:
        return list(a.providers)
    cls = dictionary_class(a.dictionary)
    fused = why_not_fused(cls(cls.configure(n_features=a.features, k=a.k), a.d, 0)) is None
    return [provider for provider in own if fused or PROVIDERS[provider] is None]


def calibration(x_ND: torch.Tensor) -> Calibration:
    """As training measures it, but for a scale of 1: all libraries get the same rows."""
    measured = measure(x_ND)
    start = tuple(b / measured.scale for b in measured.b_dec_start)
    return measured.model_copy(update={"scale": 1.0, "total_variance": float(x_ND.shape[1]), "b_dec_start": start})


def encode_matmul(a: argparse.Namespace, dtype: torch.dtype) -> Callable[[int], Any]:
    """The arithmetic that no exact step avoids: [N, D] x [D, F] into memory that is there."""
    x, W = torch.randn(a.batch, a.d).to(dtype), torch.randn(a.features, a.d).to(dtype)
    out = torch.empty(a.batch, a.features, dtype=dtype)
    return lambda number: torch.mm(x, W.T, out=out)


def run_step(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """A training step by each provider, and the two matmuls; with --peers other libraries' steps in turn with ours."""
    providers = providers_of(a, *PROVIDERS)
    variants: dict[str, Callable[[int], Any]] = {
        "gemm fp32": encode_matmul(a, torch.float32),
        "gemm bf16": encode_matmul(a, torch.bfloat16),
    }
    variants |= {provider: StepRunner(a, provider) for provider in providers}
    times = interleaved(variants, a.repeats, a.clock)
    config = {name: getattr(a, name) for name in ("dictionary", *SHAPE, "dead", "clip_norm")}
    results = []
    for provider, ms in times.items():
        gemm = times["gemm bf16" if "bf16" in provider else "gemm fp32"]
        more = {} if provider.startswith("gemm") or a.no_rss else {"peak_rss_mb": rss_alone(a, provider)}
        results.append(Timing("step", provider, config, ms, gemm, a.batch, more))
    return results + (in_turn(a, setting, "step", a.batch) if a.peers else [])


def rss_alone(a: argparse.Namespace, provider: str) -> float:
    """Peak memory of a process that does nothing but a few steps by this provider."""
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "rss", "--providers", provider]
    for name in ("dictionary", *SHAPE, "dead", "threads", "allocator"):
        command += [f"--{name}", str(getattr(a, name))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def run_rss(a: argparse.Namespace) -> None:
    """What `rss_alone` starts."""
    runner = StepRunner(a, a.providers[0])
    for number in range(3):
        runner(number)
    print(round(peak_rss_mb(), 1))


def run_child(a: argparse.Namespace) -> None:
    """What `bench_turns.in_turn` starts: our own turn."""
    if a.task == "mp-encode":
        own: Callable[[int], Any] = bench_ops.pursuit(a)
    elif a.task == "mp-step":
        own = StepRunner(argparse.Namespace(**{**vars(a), "dictionary": "matching_pursuit"}), "plain autograd")
    else:
        own = StepRunner(a, a.own)
    gemm = encode_matmul(a, torch.bfloat16 if "bf16" in a.own else torch.float32)
    times = interleaved({"gemm": gemm, "own": own}, 8, a.clock)
    print(json.dumps({"ms": times["own"], "gemm_ms": times["gemm"], "peak_rss_mb": round(peak_rss_mb(), 1)}))


def run_quality(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """FVU on held-out rows after the same steps on the same rows, by each provider (and by peers)."""
    config = {name: getattr(a, name) for name in ("dictionary", *SHAPE, "steps", "lr")}
    config |= {"data": "synthetic" if a.data is None else "rows of a file"}
    results, now = [], CLOCKS[a.clock]
    for provider in providers_of(a, "fused fp32", "fused bf16-screen", "plain autograd"):
        runner, ms = StepRunner(a, provider), []
        for number in range(a.steps):
            x_ND = runner.batches(number)
            start = now()
            runner.take(number, x_ND)
            ms.append((now() - start) * 1e3)
        found = {"fvu": round(fvu(runner.dictionary, runner.batches.held), 5)}
        results.append(Timing("quality", provider, config, ms, [], a.batch, found))
    shared = [f"--{name}={getattr(a, name)}" for name in (*SHAPE, "steps", "lr", "threads", "allocator", "clock")]
    shared += [f"--data={a.data}"] if a.data else []
    for peer in PEERS if a.peers else ():
        result = run_peer(a.peers_python, peer, "step", shared)
        if result:
            results.append(Timing("quality", peer, config, result["ms"], [], a.batch, {"fvu": result["fvu"]}))
    return results


def run_growth(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """The fused steps at growing F or N, and their slopes over what grows.

    time_exponent: the slope of log time over log size, by least squares. mb_per_thousand: the slope of peak memory.
    """
    results: list[Timing] = []
    providers = a.providers or ["fused fp32", "fused bf16-screen"]
    for size in GROWING[a.over]:
        shape = argparse.Namespace(**{**vars(a), a.over: size, "providers": providers, "peers": False})
        results += [replace(r, op=f"growth over {a.over}") for r in run_step(shape, setting)]
    slopes = {}
    for provider in dict.fromkeys(r.provider for r in results):
        own = [r for r in results if r.provider == provider]
        logs = [(math.log(r.config[a.over]), math.log(min(r.ms))) for r in own]
        slopes[provider] = {"time_exponent": round(slope(logs), 3)}
        memory = [(r.config[a.over] / 1000, r.more["peak_rss_mb"]) for r in own if "peak_rss_mb" in r.more]
        if memory:
            slopes[provider]["mb_per_thousand"] = round(slope(memory), 2)
    last = {provider: max(i for i, r in enumerate(results) if r.provider == provider) for provider in slopes}
    for provider, i in last.items():
        results[i] = replace(results[i], more={**results[i].more, **slopes[provider]})
    return results


def slope(points: list[tuple[float, float]]) -> float:
    """The least-squares slope of y over x."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in zip(*points))
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))
