"""Steps of other libraries and our own in processes that take turns, for `bench.py --peers`."""

import argparse
import json
import subprocess
import sys
from typing import Any

from bench_measure import ROOT, Setting, Timing
from bench_peers import PEERS, PURSUITS

OWN = {"step": ("fused fp32", "fused bf16-screen"), "mp-encode": ("Gram built each time",), "mp-step": ("auto",)}
NAMES = ("d", "features", "k", "batch")


def in_turn(a: argparse.Namespace, setting: Setting, task: str, batch: int) -> list[Timing]:
    """Each peer's and our own times of a task: a.rounds turns of a few calls, each in a process of its own.

    `times_ours`: the peer's least time over that of each of our own, fp32 first.
    """
    config = {name: getattr(a, name) for name in NAMES} | {"batch": batch}
    shared = [f"--{name}={value}" for name, value in config.items()]
    shared += [f"--threads={setting.threads}", f"--allocator={setting.allocator}", f"--clock={setting.clock}"]
    peers = PEERS if task == "step" else PURSUITS
    calls = ["--steps=8"] if task == "step" else ["--steps=4"]
    found: dict[str, dict[str, Any]] = {}
    for _ in range(a.rounds):
        for peer in peers:
            result = run_peer(a.peers_python, peer, task, [*shared, *calls])
            if result:
                _merge(found, peer, result)
        for provider in OWN[task]:
            command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "child", "--task", task, *shared]
            done = subprocess.run([*command, "--own", provider], check=True, capture_output=True, text=True, cwd=ROOT)
            _merge(found, provider, json.loads(done.stdout))
    results = []
    for name, r in found.items():
        more = {"peak_rss_mb": r["peak_rss_mb"]}
        if name in peers:
            more |= {
                f"times_{own.replace(' ', '_')}": round(min(r["ms"]) / min(found[own]["ms"]), 2) for own in OWN[task]
            }
        results.append(Timing(f"{task} in turn", name, config, r["ms"], r["gemm_ms"], batch, more))
    return results


def run_peer(python: str, peer: str, task: str, arguments: list[str]) -> dict[str, Any] | None:
    """One peer in a process of its own; None, and a line on stderr, where it does not run."""
    command = [python, str(ROOT / "scripts" / "bench_peers.py"), peer, "--task", task, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        print(f"{peer} does not run there: {said[-1]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _merge(found: dict[str, dict[str, Any]], name: str, result: dict[str, Any]) -> None:
    """Join the times of several rounds."""
    if name not in found:
        found[name] = result
        return
    for key in ("ms", "gemm_ms"):
        found[name][key] += result[key]
    found[name]["peak_rss_mb"] = max(found[name]["peak_rss_mb"], result["peak_rss_mb"])
