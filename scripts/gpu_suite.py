"""Check and time the GPU kernels: ceilings, correctness against float64, whole steps, and other designs beside them.

    python scripts/gpu_suite.py --out DIR [--shapes abc] [--skip-checks] [--skip-baselines]

Needs torch, triton, numpy, einops and safetensors alone. The parts: `gpu_checks.py`, `gpu_timings.py`, `gpu_tuning.py`
(`--tune`), `gpu_baselines.py` (other designs), `gpu_measure.py`. Prints a table, writes `gpu.csv` and `gpu.json` to
DIR. Nothing is timed where a check failed. Times are medians of device events after warm-up, on random data, with
batches that rotate. No `ncu` is needed: each kernel's time is set against the bytes and products that it cannot do
without, at the rates that this very device was measured to have.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.gpu_checks import all_checks
from scripts.gpu_measure import GOALS_MS, SHAPES, Report, ceilings, current_commit, facts
from scripts.gpu_timings import (
    time_auxk,
    time_baselines,
    time_crossover,
    time_fused,
    time_kernels,
    time_pursuits,
    time_selections,
    time_steps,
    time_trainer,
)
from scripts.gpu_tuning import tune


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
        for name, check in all_checks().items():
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
        time_crossover(report, shape)
        time_auxk(report, shape)
        torch.cuda.empty_cache()
        time_selections(report, shape, flops)
        torch.cuda.empty_cache()
        time_pursuits(report, shape)
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
        time_fused(report, shape, ours)
        time_trainer(report, shape)
        report.write(options.out, known)
        if not options.skip_baselines:
            time_baselines(report, shape, ours)
            report.write(options.out, known)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
