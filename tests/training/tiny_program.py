"""Trains a tiny dictionary on a rows file: `python tiny_program.py ROWS RUN_DIR [section.field=value ...]`.

Environment: KILL_AT_STEP=n kills this process with SIGKILL after step n; KILL_AT_OPERATION=n at the n-th operation
(open, write, fsync, rename, ...) of the module that owns all writes, a write being cut in its middle;
KILL_IN_SAVE=c:n at the n-th operation of the c-th checkpoint that this process writes.
STOP_AT_STEP=n sends it STOP_SIGNAL (a number; STOP_TWICE=1: two times). Imports nothing of a host.

`python tiny_program.py serve` imports what the program needs once, and forks a process for each run that is asked for.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from saetools import atomic
from saetools.activations.calibration import calibrate
from saetools.activations.rows import RowsSource
from saetools.config import run_config_class
from saetools.dictionaries.base import dictionary_class
from saetools.records import Calibration
from saetools.training import run
from saetools.training.loop import train
from saetools.training.trainer import Trainer

TINY = {
    "activations": {"source": "rows", "ring_rows": 1536},
    "dictionary": {"kind": "topk", "n_features": 48, "k": 4},
    "training": {"n_tokens": 7200, "batch_rows": 120, "lr": 0.01, "checkpoint_every_tokens": 1024, "impl": "plain"},
    "logging": {"every_steps": 3, "progress": False},
    "run": {"threads": 1, "device": "cpu"},
}
OPERATIONS = ("open", "write", "fsync", "replace", "rename", "mkdir")


def tiny_config(rows: Path, run_dir: Path, **changes: Any) -> Any:
    """A RunConfig of 60 steps, whose batches do not divide the blocks of the stream; `changes` by dotted names."""
    values = json.loads(json.dumps(TINY))
    values["activations"]["path"], values["run"]["dir"] = str(rows), str(run_dir)
    for key, value in changes.items():
        section, field = key.split(".")
        values.setdefault(section, {})[field] = value
    return run_config_class(dictionary_class(values["dictionary"]["kind"]).Config).model_validate(values)


def tiny_source(config: Any) -> Callable[[Calibration | None], RowsSource]:
    """What makes the rows of a config."""
    path = config.activations.path

    def make(calibration: Calibration | None) -> RowsSource:
        return RowsSource(path, calibration=calibration or calibrate(RowsSource(path, drop_outliers=False), 1024))

    return make


class CountingOs:
    """The os module as atomic.py sees it; the process dies in the n-th of its operations."""

    def __init__(self, die_at: int) -> None:
        self.n_calls, self.die_at = 0, die_at

    def __getattr__(self, name: str) -> Any:
        original = getattr(os, name)
        if name not in OPERATIONS:
            return original

        def call(*args: Any, **kwargs: Any) -> Any:
            self.n_calls += 1
            if self.n_calls == self.die_at:
                if name == "write":
                    original(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call


def kill_in_save(number: int, operation: int) -> None:
    """Arrange for this process to die at an operation of the checkpoint that it writes as its `number`-th."""
    save, n_saves = run.save_checkpoint, 0

    def saving(*args: Any) -> Path:
        nonlocal n_saves
        n_saves += 1
        if n_saves == number:
            atomic.os = CountingOs(operation)
        return save(*args)

    run.save_checkpoint = saving


def install_hooks(environment: dict[str, str]) -> None:
    """Arrange for this process to die or be stopped as the environment says."""
    if "KILL_AT_OPERATION" in environment:
        atomic.os = CountingOs(int(environment["KILL_AT_OPERATION"]))
    if "KILL_IN_SAVE" in environment:
        kill_in_save(*map(int, environment["KILL_IN_SAVE"].split(":")))
    take_step = Trainer._step

    def step(self: Trainer, batch: Any) -> Any:
        done = take_step(self, batch)
        if done.state.step == int(environment.get("KILL_AT_STEP", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if done.state.step == int(environment.get("STOP_AT_STEP", -1)):
            for _ in range(1 + int(environment.get("STOP_TWICE", 0))):
                os.kill(os.getpid(), int(environment["STOP_SIGNAL"]))
        return done

    Trainer._step = step


def main(arguments: list[str]) -> None:
    rows, run_dir, *changes = arguments
    pairs = dict(change.split("=") for change in changes)
    config = tiny_config(Path(rows), Path(run_dir), **{key: json.loads(value) for key, value in pairs.items()})
    install_hooks(dict(os.environ))
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    train([config], tiny_source(config))
    assert "transformer_lens" not in sys.modules
    assert "transformers" not in sys.modules


def serve() -> None:
    """For each line of stdin, {arguments, environment, output: file}, a run in a fork; its exit code to stdout."""
    import saetools.kernels.swap_rows.cpu  # noqa: F401  # with numba, which a run imports late

    for line in sys.stdin:
        asked = json.loads(line)
        if not (child := os.fork()):
            output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.update(asked["environment"])
            signal.alarm(600)
            main(asked["arguments"])
            return
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main(sys.argv[1:])
