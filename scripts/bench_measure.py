"""Measuring for `bench.py`: interleaved timing, peak memory, and rows that a reader can trust."""

import csv
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_peers import CLOCKS

from saetools.training.environment import cpu_name

ROOT = Path(__file__).parents[1]
CSV_DIR = ROOT / "analysis" / "bench"


def interleaved(
    variants: Mapping[str, Callable[[int], Any]], repeats: int, clock: str, warmup: int = 2
) -> dict[str, list[float]]:
    """Milliseconds of each variant, called in turn (with the number of the round), so that all share the weather."""
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + repeats):
        for name, call in variants.items():
            start = now()
            call(number)
            if number >= warmup:
                times[name].append((now() - start) * 1e3)
    return times


@dataclass(frozen=True)
class Setting:
    """What all variants of a benchmark share."""

    threads: int
    allocator: str
    clock: str = "wall"
    device: str = field(default_factory=lambda: f"{cpu_name()}, {os.cpu_count()} cores")

    def start(self) -> "Setting":
        """Set it in this process; the allocator as it could be set."""
        import torch

        from saetools.kernels.workspace import keep_freed_memory

        torch.set_num_threads(self.threads)
        if self.clock == "cpu" and self.threads > 1:
            sys.exit("--clock cpu counts all threads of the process, waiting ones too: it needs --threads 1")
        allocator = keep_freed_memory() if self.allocator == "keep-freed" else "default"
        return Setting(self.threads, allocator, self.clock)


@dataclass(frozen=True)
class Timing:
    """One variant's result."""

    op: str
    provider: str
    config: Mapping[str, Any]
    ms: list[float]
    gemm_ms: list[float]  # the encode matmul of the same dtype, measured in the same rounds
    rows: int
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self, setting: Setting) -> dict[str, Any]:
        """The line that `--json` prints."""
        found = {
            "op": self.op,
            "provider": self.provider,
            **self.config,
            "ms_min": round(min(self.ms), 3),
            "ms_median": round(statistics.median(self.ms), 3),
            "tokens_per_s": round(self.rows / min(self.ms) * 1e3),
            "repeats": len(self.ms),
        }
        if self.gemm_ms:
            ratios = [a / b for a, b in zip(self.ms, self.gemm_ms)]
            found |= {
                "gemm_ms_min": round(min(self.gemm_ms), 3),
                "ratio_to_gemm": round(min(self.ms) / min(self.gemm_ms), 3),
                "ratio_to_gemm_median": round(statistics.median(ratios), 3),
            }
        return found | dict(self.more) | asdict(setting)


def report(results: list[Timing], setting: Setting, as_json: bool, csv_name: str | None) -> None:
    """Print the results, and append them to analysis/bench/<csv_name>.csv."""
    for result in results:
        line = result.as_json(setting)
        if as_json:
            print(json.dumps(line))
        else:
            ratio = f"{line['ratio_to_gemm']:7.2f} x gemm" if "ratio_to_gemm" in line else " " * 14
            extra = "  ".join(f"{key}={value}" for key, value in result.more.items())
            print(
                f"{result.op:16s} {result.provider:28s} min {line['ms_min']:9.2f} ms"
                f"  median {line['ms_median']:9.2f} ms {ratio}  {line['tokens_per_s']:>11,d} rows/s  {extra}"
            )
    if csv_name:
        append_csv(CSV_DIR / f"{csv_name}.csv", results, setting)


def append_csv(path: Path, results: list[Timing], setting: Setting) -> None:
    """Add rows (op, provider, config, metric, unit, min, median, device, threads, versions, commit, date)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    shared = {
        "device": setting.device,
        "threads": setting.threads,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    with path.open("a", newline="") as file:
        names = ["op", "provider", "config", "metric", "unit", "min", "median", *shared]
        writer = csv.DictWriter(file, names)
        if fresh:
            writer.writeheader()
        for result in results:
            config = json.dumps({**result.config, "allocator": setting.allocator, "clock": setting.clock})
            line = result.as_json(setting)
            rows = [("time", "ms", line["ms_min"], line["ms_median"])]
            if "ratio_to_gemm" in line:
                rows.append(("ratio to gemm", "1", line["ratio_to_gemm"], line["ratio_to_gemm_median"]))
            rows += [(key, "", value, "") for key, value in result.more.items()]
            for metric, unit, least, median in rows:
                row = {"metric": metric, "unit": unit, "min": least, "median": median}
                writer.writerow({"op": result.op, "provider": result.provider, "config": config} | row | shared)


def versions() -> str:
    """What computes."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    try:
        import numba

        found["numba"] = numba.__version__
    except ImportError:
        pass
    return " ".join(f"{name} {version}" for name, version in found.items())


def commit() -> str:
    """The commit that is checked out, with + where files differ from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, cwd=ROOT)
    return run.stdout.strip() or "unknown"
