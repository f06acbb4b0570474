"""Check and time the GPU kernels: ceilings, correctness against float64, whole steps, and other designs beside them.

    python scripts/gpu_suite.py --out DIR [--shapes abc] [--skip-checks] [--skip-baselines] [--workers N]

Needs torch, triton, numpy, einops and safetensors alone. The parts: `gpu_checks.py` (kernels), `gpu_step_checks.py`,
`gpu_timings.py`, `gpu_tuning.py` (`--tune`), `gpu_baselines.py` (other designs), `gpu_measure.py`. Prints a table,
writes `gpu.csv` and `gpu.json` to DIR. Nothing is timed where a check failed. Kernels are compiled beforehand by as
many processes as the machine has room for (16 cores: a minute). Times are medians of device events after warm-up, on
random data, with batches that rotate. No `ncu` is needed: each kernel's time is set against the bytes and products that
it cannot do without, at the rates that this very device was measured to have; `gpu_timeline.py` shows what the launches
of a recorded step wait for.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts import gpu_timings as timings
from scripts.gpu_checks import kernel_checks
from scripts.gpu_measure import Report, ceilings, current_commit, facts
from scripts.gpu_step_checks import step_checks
from scripts.gpu_tuning import tune

STEP = "encode", "decode", "backward", "step"
TIMINGS = {
    "steps": (timings.time_steps, (*STEP, "auxk")),
    "mutual choice": (timings.time_mutual, (*STEP, "selections", "mutual choice")),
    "trainer's step": (timings.time_trainer, (*STEP, "trainer")),
    "other designs": (timings.time_baselines, (*STEP, "auxk", "other designs")),
    "kernels": (timings.time_kernels, STEP),
    "dense decode": (timings.time_crossover, STEP),
    "AuxK": (timings.time_auxk, (*STEP, "auxk")),
    "selections": (timings.time_selections, ("encode", "selections")),
    "pursuits": (timings.time_pursuits, ("pursuit",)),
    "tuning": (tune, STEP),
}
"""What is timed at each shape, by which function, and the checks that it goes by."""


def failed_parts(report: Report, first: int = 0, step: int = 1) -> set[str]:
    """The parts of which a check failed, of every `step`-th."""
    failed = set()
    parts = (kernel_checks() | step_checks()).items()
    for part, name, check in [(part, *one) for part, checks in parts for one in checks.items()][first::step]:
        start = time.perf_counter()
        try:
            why = check() or ""
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:400]}"
        seconds = time.perf_counter() - start
        report.add("-", f"check of {part}: {name}", "failed" if why else "passed", "s", [seconds], why)
        if why:
            failed.add(part)
    return failed


def compile_beforehand(n_workers: int, shapes: str) -> None:
    """Run the checks and each shape's timings by processes beside each other, whose results are dropped: triton keeps
    what they compile, and the run that counts finds it."""
    command = [sys.executable, __file__, "--workers", "0", "--commit", "dropped"]
    shares = [["--shapes", "", "--checks", str(first), str(n_workers)] for first in range(n_workers)]
    shares += [["--shapes", shape, "--skip-checks"] for shape in shapes]
    with tempfile.TemporaryDirectory() as out:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started = [
            subprocess.Popen([*command, *share, "--out", f"{out}/{n}"], **quiet)  # type: ignore[call-overload]
            for n, share in enumerate(shares)
        ]
        for process in started:
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for gpu.csv and gpu.json")
    parser.add_argument("--shapes", default="abc", help="which of a, b, c")
    parser.add_argument("--skip-checks", action="store_true", help="time without checking (for tuning; not reported)")
    parser.add_argument("--checks", nargs=2, type=int, default=(0, 1), metavar=("FIRST", "STEP"), help="which of them")
    parser.add_argument("--skip-baselines", action="store_true")
    parser.add_argument("--tune", action="store_true", help="also time other launches of the feature kernel")
    parser.add_argument("--commit", help="what to record, where git cannot tell")
    room = max(0, min(8, (os.cpu_count() or 1) - 4))
    parser.add_argument("--workers", type=int, default=room, help=f"processes that compile beforehand (here {room})")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device is visible to torch; without one, `pytest tests/kernels` interprets the kernels")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    known = facts(options.commit or current_commit())
    print(known, flush=True)
    if options.workers > 0:
        compile_beforehand(0 if options.skip_checks else options.workers, options.shapes)
    report = Report()
    device = ceilings(report)
    failed = set() if options.skip_checks else failed_parts(report, *options.checks)
    report.write(options.out, known)
    left_out = {"other designs": options.skip_baselines, "tuning": not options.tune}
    complete = not failed
    for shape in options.shapes:
        for what, (work, parts) in TIMINGS.items():
            if left_out.get(what):
                continue
            if wrong := failed.intersection(parts):
                report.add(shape, what, "not timed", "", [0.0], f"checks failed: {', '.join(sorted(wrong))}")
            else:
                torch.cuda.empty_cache()
                try:
                    work(report, shape, device)
                except Exception as error:
                    complete = False
                    report.add(shape, what, "failed", "", [0.0], f"{type(error).__name__}: {str(error)[:400]}")
            report.write(options.out, known)
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
