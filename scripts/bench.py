"""Benchmarks: `bench.py step | ops | mp | loader | quality | growth`, e.g. `python scripts/bench.py step --json`.

Each first runs the correctness gate of the kernels that it times and prints nothing but the failure where that is
red. Variants run in turn within one process (other libraries, with --peers: processes in turn), with one number of
threads and one allocator setting for all; reported are the least and the median time, and the ratio to the encode
matmul of the same dtype measured in the same rounds. Rows are appended to analysis/bench/*.csv with `--record`.
"""

import argparse
import shutil
import sys

import bench_ops
import bench_steps
from bench_measure import Setting, report
from bench_peers import CLOCKS, at_least_one

from saetools.errors import SaetoolsError

RUN = {
    "step": bench_steps.run_step,
    "growth": bench_steps.run_growth,
    "quality": bench_steps.run_quality,
    **bench_ops.RUN,
}
INNER = {"rss": bench_steps.run_rss, "child": bench_steps.run_child}
"""What benchmarks start in processes of their own."""


def share(text: str) -> float:
    """A number in 0..1."""
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*RUN, *INNER), metavar="|".join(RUN))
    parser.add_argument("--dictionary", default="topk", help="kind of dictionary in `step`")
    parser.add_argument("--d", type=at_least_one, default=512, help="width of rows")
    parser.add_argument("--features", type=at_least_one, default=8192)
    parser.add_argument("--k", type=at_least_one, default=32)
    parser.add_argument("--batch", type=at_least_one, default=2048, help="rows")
    parser.add_argument("--dead", type=share, default=0.0, help="share of features that are dead, for AuxK")
    parser.add_argument("--clip-norm", type=float, default=1.0, help="bound of the gradient's norm, as in training")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--repeats", type=at_least_one, default=15)
    parser.add_argument("--steps", type=at_least_one, default=200, help="training steps in `quality`")
    parser.add_argument("--over", choices=tuple(bench_steps.GROWING), default="features", help="what grows in `growth`")
    parser.add_argument("--data", help=".npy of rows [N, D] instead of synthetic ones")
    parser.add_argument("--threads", type=at_least_one, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: of a thread, on a busy machine")
    parser.add_argument("--allocator", choices=("default", "keep-freed"), default="keep-freed")
    parser.add_argument("--providers", nargs="+", choices=tuple(bench_steps.PROVIDERS), help="steps to time")
    parser.add_argument("--no-rss", action="store_true", help="do not start processes to measure peak memory")
    parser.add_argument("--json", action="store_true", help="one JSON line per result")
    parser.add_argument("--record", action="store_true", help="append to analysis/bench/*.csv")
    parser.add_argument("--peers", action="store_true", help="other libraries too, in `step`, `mp` and `quality`")
    parser.add_argument("--peers-python", help="interpreter of the environment that has them")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="turns of processes with --peers")
    parser.add_argument("--task", default="step", help=argparse.SUPPRESS)
    parser.add_argument("--own", default="fused fp32", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.peers and not a.peers_python:
        parser.error("--peers needs --peers-python, the interpreter of an environment that has the other libraries")
    if a.peers and shutil.which(a.peers_python) is None:
        parser.error(f"--peers-python: {a.peers_python} is no program")
    return a


def gate(a: argparse.Namespace) -> None:
    """Exit with the failure where a kernel that is about to be timed is wrong."""
    try:
        bench_ops.GATES.get(a.what, bench_ops.gate_ops)()
        if a.dictionary == "matching_pursuit":
            bench_ops.gate_mp()
    except AssertionError as failure:
        sys.exit(f"the correctness gate is red, so nothing is timed: {failure}")


def main() -> None:
    a = arguments()
    setting = Setting(a.threads, a.allocator, a.clock).start()
    if a.what in INNER:
        INNER[a.what](a)
        return
    gate(a)
    try:
        results = RUN[a.what](a, setting)
    except SaetoolsError as error:  # what was asked for does not exist, or does not fit
        sys.exit(str(error))
    report(results, setting, a.json, a.what if a.record else None)


if __name__ == "__main__":
    main()
