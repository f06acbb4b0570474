"""Step time of every dictionary at one size, as a CSV: `python analysis/step_times.py` on an idle machine.

One optimizer step (ITDA: one update) on 2048 rows of D = 512 with F = 8192 and k = 32, as training takes it (`impl:
auto`), all kinds in turn within one process after a warm-up step. Rows are sparse sums of planted atoms with noise, so
that pursuit and construction have something to find. On a busy machine `--clock cpu --threads 1` counts the processor
seconds of the process instead; they are upper bounds, since neighbours share its caches.
"""

import argparse
import csv
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from saetools.activations.base import ActivationBatch
from saetools.activations.calibration import measure
from saetools.activations.planted import Planted, PlantedConfig
from saetools.dictionaries.base import available_dictionaries, make_dictionary
from saetools.training.construction import make_trainer
from saetools.training.environment import set_threads
from saetools.training.schedule import Plan

D, F, K, N = 512, 8192, 32, 2048


def stepper(kind: str, batches: list[ActivationBatch]) -> tuple[Any, str]:
    """(what takes one step, how it computes it)."""
    cls = available_dictionaries()[kind]
    settings = {"n_features": F} | ({"k": K} if "k" in cls.Config.model_fields else {})
    dictionary = make_dictionary(cls.configure(**settings), D)
    calibration = measure(batches[0].x_ND, batches[0].fields["grad"])
    dictionary.calibrate_(calibration)
    number = 0
    plan = Plan(
        n_tokens=10**9,
        n_steps=10**6,
        batch_rows=N,
        peak_lr=1e-4,
        warmup_steps=0,
        decay_fraction=0.0,
        clip_norm=1.0,
        dead_after_tokens=10**7,
    )
    trainer = make_trainer(dictionary, plan, calibration, "auto")

    def step() -> None:
        nonlocal number
        number += 1
        done = [*trainer.consume(batches[number % len(batches)]), *trainer.settle()]
        assert all(bool(d.result.applied) for d in done)

    return step, trainer.take_step.provider


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--threads", type=int, help="None: all cores")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    a = parser.parse_args()
    law = PlantedConfig(d_model=D, n_features=4096, mean_active=16, zipf_exponent=0.5, noise=0.05)
    planted = Planted(law)
    batches = []
    for i in range(4):
        x_ND = planted.block(i, N).x_ND
        grad_ND = torch.randn(N, D, generator=torch.Generator().manual_seed(i)) * 1e-3
        batches.append(ActivationBatch(x_ND, torch.zeros(N, 2, dtype=torch.int64), {"grad": grad_ND}))
    set_threads(a.threads)
    clock = time.process_time if a.clock == "cpu" else time.perf_counter
    kinds = [kind.kind for kind in dict.fromkeys(available_dictionaries().values()) if kind.trained_by != "nothing"]
    steppers = {kind: stepper(kind, batches) for kind in kinds}
    set_threads(a.threads)  # again, for what making the steps has imported
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(-1, a.repeats):
        for kind, (step, _) in steppers.items():
            began = clock()
            step()
            if repeat >= 0:
                seconds[kind].append(clock() - began)
    with a.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["kind", "min_ms", "median_ms", "n", "provider", "D", "F", "k", "rows", "threads", "clock", "load"]
        writer.writerow(head)
        for kind in sorted(kinds, key=lambda kind: min(seconds[kind])):
            taken, provider = [1000 * s for s in seconds[kind]], steppers[kind][1]
            row = [kind, f"{min(taken):.1f}", f"{median(taken):.1f}", len(taken), provider, D, F, K, N]
            writer.writerow([*row, torch.get_num_threads(), a.clock, f"{os.getloadavg()[0]:.1f}"])
    print(a.out.read_text())


if __name__ == "__main__":
    main()
