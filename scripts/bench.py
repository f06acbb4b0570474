"""Benchmarks: `bench.py step | quality | ops | mp | loader | growth`, e.g. `python scripts/bench.py step --json`.

Each first runs the correctness gate of the kernels that it times and prints nothing but the failure where that is
red. Variants run in turn within one process (other libraries: processes in turn), with one number of threads and one
allocator setting for all; reported are the least and the median time, and the ratio to the encode matmul of the same
dtype measured in the same rounds. Rows are appended to analysis/bench/*.csv with `--record`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bench_ops
import torch
from bench_measure import ROOT, Setting, Timing, interleaved, report
from bench_peers import PEERS, Batches, fvu, peak_rss_mb

from saetools.dictionaries.base import Dictionary, Progress, dictionary_class
from saetools.kernels.auxk import cases as auxk_cases
from saetools.kernels.backward_adam import cases as backward_adam_cases
from saetools.kernels.decode_loss import cases as decode_loss_cases
from saetools.kernels.encode_topk import cases as encode_topk_cases
from saetools.kernels.global_topk import cases as global_topk_cases
from saetools.training.fused import FusedStep
from saetools.training.optim import Adam
from saetools.training.step import PlainStep, trained_parameters

STEP_GATES = (encode_topk_cases, global_topk_cases, decode_loss_cases, backward_adam_cases, auxk_cases)
PROVIDERS = {
    "fused fp32": ("fp32", "auto"),
    "fused bf16-screen": ("bf16-screen", "auto"),
    "fused fp32, stock torch": ("fp32", "torch"),
    "plain autograd": None,
}


class StepRunner:
    """One dictionary in training on a few batches in turn."""

    def __init__(self, a: argparse.Namespace, provider: str) -> None:
        cls = dictionary_class(a.dictionary)
        self.dictionary: Dictionary = cls(cls.configure(n_features=a.features, k=a.k), a.d, 0)
        self.dictionary.total_variance.fill_(float(a.d))
        optimizer = Adam(trained_parameters(self.dictionary))
        kind = PROVIDERS[provider]
        if kind is None:
            self.step: Any = PlainStep(self.dictionary, optimizer, 1.0)
        else:
            self.step = FusedStep(self.dictionary, optimizer, 1.0, precision=kind[0], impl=kind[1])
        self.state = self.dictionary.initial_state()
        self.n_dead = round(a.dead * a.features)
        if self.n_dead:
            with torch.no_grad():
                self.dictionary.b_enc_F[: self.n_dead] = -1e4  # never among the k largest
            self.state.tokens_since_fired_F[: self.n_dead] = 10**9
        self.batches = Batches(a.data, a.batch, a.d)
        self.few = [self.batches(i) for i in range(4)]

    def __call__(self, number: int) -> None:
        self.take(number, self.few[number % len(self.few)])

    def take(self, number: int, x_ND: torch.Tensor) -> None:
        progress = Progress(step=number, n_steps=10**6, n_tokens=10**9, dead_after_tokens=10**8)
        result = self.step(x_ND, x_ND, {}, self.state, progress, 3e-4)
        assert result.applied
        self.state = result.state


def encode_matmul(a: argparse.Namespace, dtype: torch.dtype) -> Callable[[int], Any]:
    """The arithmetic that no exact step avoids: [N, D] x [D, F] into memory that is there."""
    x, W = torch.randn(a.batch, a.d).to(dtype), torch.randn(a.features, a.d).to(dtype)
    out = torch.empty(a.batch, a.features, dtype=dtype)
    return lambda number: torch.mm(x, W.T, out=out)


def run_step(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """A training step by each provider, and the two matmuls."""
    providers = a.providers or list(PROVIDERS)
    variants: dict[str, Callable[[int], Any]] = {
        "gemm fp32": encode_matmul(a, torch.float32),
        "gemm bf16": encode_matmul(a, torch.bfloat16),
    }
    variants |= {provider: StepRunner(a, provider) for provider in providers}
    times = interleaved(variants, a.repeats)
    config = {name: getattr(a, name) for name in ("dictionary", "d", "features", "k", "batch", "dead")}
    results = []
    for provider, ms in times.items():
        gemm = times["gemm bf16" if "bf16" in provider else "gemm fp32"]
        more = {} if provider.startswith("gemm") or a.no_rss else {"peak_rss_mb": rss_alone(a, provider)}
        results.append(Timing("step", provider, config, ms, gemm, a.batch, more))
    return results


def rss_alone(a: argparse.Namespace, provider: str) -> float:
    """Peak memory of a process that does nothing but a few steps by this provider."""
    command = [sys.executable, __file__, "rss", "--providers", provider, "--dictionary", a.dictionary]
    for name in ("d", "features", "k", "batch", "dead", "threads", "allocator"):
        command += [f"--{name}", str(getattr(a, name))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def run_rss(a: argparse.Namespace) -> None:
    runner = StepRunner(a, a.providers[0])
    for number in range(3):
        runner(number)
    print(round(peak_rss_mb(), 1))


def run_peers(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """Peers and our own step in processes that take turns."""
    config = {name: getattr(a, name) for name in ("d", "features", "k", "batch")}
    shared = [f"--{name}={value}" for name, value in config.items()]
    shared += [f"--threads={setting.threads}", f"--allocator={setting.allocator}"]
    own = ["fused fp32", "fused bf16-screen"]
    found: dict[str, dict[str, Any]] = {}
    for _ in range(a.rounds):
        for peer in PEERS:
            result = run_peer(a, peer, setting, [])
            if result:
                merge(found, peer, result)
        for provider in own:
            command = [sys.executable, __file__, "child", "--providers", provider, "--repeats=8", *shared]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            merge(found, provider, json.loads(done.stdout))
    return [
        Timing("step in turn", name, config, r["ms"], r["gemm_ms"], a.batch, {"peak_rss_mb": r["peak_rss_mb"]})
        for name, r in found.items()
    ]


def run_child(a: argparse.Namespace) -> None:
    variants = {"gemm": encode_matmul(a, torch.float32), "step": StepRunner(a, a.providers[0])}
    times = interleaved(variants, a.repeats)
    print(json.dumps({"ms": times["step"], "gemm_ms": times["gemm"], "peak_rss_mb": round(peak_rss_mb(), 1)}))


def merge(found: dict[str, dict[str, Any]], name: str, result: dict[str, Any]) -> None:
    """Join the times of several rounds."""
    if name not in found:
        found[name] = result
        return
    for key in ("ms", "gemm_ms"):
        found[name][key] += result[key]
    found[name]["peak_rss_mb"] = max(found[name]["peak_rss_mb"], result["peak_rss_mb"])


def run_quality(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """FVU on held-out rows after the same steps on the same rows, by each provider (and by peers)."""
    config = {name: getattr(a, name) for name in ("dictionary", "d", "features", "k", "batch", "steps")}
    results = []
    for provider in a.providers or ["fused fp32", "fused bf16-screen", "plain autograd"]:
        runner, ms = StepRunner(a, provider), []
        for number in range(a.steps):
            x_ND = runner.batches(number)
            start = time.perf_counter()
            runner.take(number, x_ND)
            ms.append((time.perf_counter() - start) * 1e3)
        found = {"fvu": round(fvu(runner.dictionary, runner.batches.held), 5)}
        results.append(Timing("quality", provider, config, ms, [], a.batch, found))
    for peer in PEERS if a.peers else ():
        result = run_peer(a, peer, setting, ["--steps", str(a.steps), *(["--data", a.data] if a.data else [])])
        if result:
            results.append(Timing("quality", peer, config, result["ms"], [], a.batch, {"fvu": result["fvu"]}))
    return results


def run_peer(a: argparse.Namespace, peer: str, setting: Setting, more: list[str]) -> dict[str, Any] | None:
    """One peer in a process of its own; None, and a line on stderr, where it does not run."""
    shared = [f"--{name}={getattr(a, name)}" for name in ("d", "features", "k", "batch")]
    shared += [f"--threads={setting.threads}", f"--allocator={setting.allocator}", *more]
    command = [a.peers_python, str(ROOT / "scripts" / "bench_peers.py"), peer, *shared]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{peer} does not run there: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def run_growth(a: argparse.Namespace, setting: Setting) -> list[Timing]:
    """The fused step at growing F, then at growing N."""
    results = []
    shapes = [(features, a.batch) for features in (4096, 8192, 16384, 32768, 65536)]
    shapes += [(a.features, batch) for batch in (512, 1024, 4096, 8192)]
    for features, batch in shapes:
        shape = argparse.Namespace(**{**vars(a), "features": features, "batch": batch, "providers": ["fused fp32"]})
        results += [r for r in run_step(shape, setting) if r.provider == "fused fp32"]
    return [replace(r, op="growth") for r in results]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "quality", "ops", "mp", "loader", "growth", "rss", "child"))
    parser.add_argument("--dictionary", default="topk", help="kind of dictionary in `step`")
    parser.add_argument("--d", type=int, default=512, help="width of rows")
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048, help="rows")
    parser.add_argument("--dead", type=float, default=0.0, help="share of features that are dead, for AuxK")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200, help="training steps in `quality`")
    parser.add_argument("--data", help=".npy of rows [N, D] instead of synthetic ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=("default", "keep-freed"), default="keep-freed")
    parser.add_argument("--providers", nargs="+", choices=tuple(PROVIDERS), help="steps to time; all without it")
    parser.add_argument("--no-rss", action="store_true", help="do not start processes to measure peak memory")
    parser.add_argument("--json", action="store_true", help="one JSON line per result")
    parser.add_argument("--record", action="store_true", help="append to analysis/bench/*.csv")
    parser.add_argument("--peers", action="store_true", help="time other libraries' steps too")
    parser.add_argument("--peers-python", help="interpreter of the environment that has them")
    parser.add_argument("--rounds", type=int, default=3, help="turns of processes with --peers")
    a = parser.parse_args()
    if a.peers and not a.peers_python:
        parser.error("--peers needs --peers-python, the interpreter of an environment that has the other libraries")
    return a


def gate(what: str) -> None:
    """Exit with the failure where a kernel that is about to be timed is wrong."""
    try:
        if what in ("step", "growth", "quality"):
            for module in STEP_GATES:
                module.verify("auto")
            encode_topk_cases.verify("auto", "bf16-screen")
        elif what in bench_ops.GATES:
            bench_ops.GATES[what]()
    except AssertionError as failure:
        sys.exit(f"the correctness gate is red, so nothing is timed: {failure}")


def main() -> None:
    a = arguments()
    setting = Setting(a.threads, a.allocator).start()
    if a.what in ("rss", "child"):
        (run_rss if a.what == "rss" else run_child)(a)
        return
    gate(a.what)
    run = {"step": run_step, "growth": run_growth, "quality": run_quality, **bench_ops.RUN}[a.what]
    results = run(a, setting)
    if a.what == "step" and a.peers:
        results += run_peers(a, setting)
    report(results, setting, a.json, a.what if a.record else None)


if __name__ == "__main__":
    main()
