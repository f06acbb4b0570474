"""Step time of every dictionary at one size, as a CSV: `python analysis/step_times.py` on an idle machine.

One optimizer step on 2048 rows of D = 512 with F = 8192 and k = 32, as training takes it (`impl: auto`), all kinds in
turn within one process after a warm-up step. A construction ends where it is full, so each time the third update of a
fresh dictionary is taken. Rows are sparse sums of planted atoms with noise, so that pursuit and construction have
something to find. On a busy machine `--clock cpu --threads 1` counts the processor
seconds of the process instead; they are upper bounds, since neighbours share its caches.
"""

import argparse
import csv
import os
import time
from pathlib import Path
from statistics import median

import torch

from saetools.activations.base import ActivationBatch
from saetools.activations.calibration import measure
from saetools.activations.planted import Planted, PlantedConfig
from saetools.dictionaries.base import available_dictionaries, make_dictionary
from saetools.training.construction import ConstructionTrainer, make_trainer
from saetools.training.environment import set_threads
from saetools.training.schedule import Plan
from saetools.training.trainer import Trainer

D, F, K, N = 512, 8192, 32, 2048


class Stepper:
    """Takes one step of a kind at a time."""

    def __init__(self, kind: str, batches: list[ActivationBatch]) -> None:
        self.kind, self.batches, self.number = kind, batches, 0
        self.trainer = self._fresh()

    def prepare(self) -> None:
        """What is not timed: a construction is brought to its third update."""
        if isinstance(self.trainer, ConstructionTrainer):
            self.trainer = self._fresh()
            self.step()
            self.step()

    def step(self) -> None:
        """One step; AssertionError where nothing was done."""
        self.number += 1
        batch = self.batches[self.number % len(self.batches)]
        done = [*self.trainer.consume(batch), *self.trainer.settle()]
        assert done and all(bool(d.result.applied) for d in done), f"{self.kind} took no step"

    def _fresh(self) -> Trainer:
        cls = available_dictionaries()[self.kind]
        settings = {"n_features": F} | ({"k": K} if "k" in cls.Config.model_fields else {})
        dictionary = make_dictionary(cls.configure(**settings), D)
        calibration = measure(self.batches[0].x_ND, self.batches[0].fields["grad"])
        dictionary.calibrate_(calibration)
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
        return make_trainer(dictionary, plan, calibration, "auto")


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
    steppers = {kind: Stepper(kind, batches) for kind in kinds}
    set_threads(a.threads)  # again, for what making the steps has imported
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(-1, a.repeats):
        for kind, stepper in steppers.items():
            stepper.prepare()
            began = clock()
            stepper.step()
            if repeat >= 0:
                seconds[kind].append(clock() - began)
    with a.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["kind", "min_ms", "median_ms", "n", "provider", "D", "F", "k", "rows", "threads", "clock", "load"]
        writer.writerow(head)
        for kind in sorted(kinds, key=lambda kind: min(seconds[kind])):
            taken, provider = [1000 * s for s in seconds[kind]], steppers[kind].trainer.take_step.provider
            row = [kind, f"{min(taken):.1f}", f"{median(taken):.1f}", len(taken), provider, D, F, K, N]
            writer.writerow([*row, torch.get_num_threads(), a.clock, f"{os.getloadavg()[0]:.1f}"])
    print(a.out.read_text())


if __name__ == "__main__":
    main()
