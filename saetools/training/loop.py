"""Training: one or several dictionaries on one shuffled stream of rows, resumable at any step.

Each run is a pure function of its config and data: bit for bit the same alone or beside others, straight or killed
and resumed (on the CPU, with the same versions and threads).
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from signal import Signals
from typing import Any

from saetools.activations.base import RowSource
from saetools.activations.shuffle import ShuffledRows, check_ring
from saetools.errors import ConfigError, DataError
from saetools.records import Calibration
from saetools.training.environment import set_threads
from saetools.training.run import Run, TrainResult
from saetools.training.run_directory import RunDirectory, changed_keys, read_calibration
from saetools.training.signals import StopRequest, stop_on_signals

_logger = logging.getLogger(__name__)
SHARED = ("host", "corpus", "activations", "planted", "run.seed", "run.device", "run.threads")
"""What configs trained on one stream have in common."""


MakeSource = Callable[[Calibration | None], RowSource]
"""Makes the rows with the calibration that a run was begun with, or measures a new one where it is None."""


def train(configs: Sequence[Any], make_source: MakeSource, allow_inexact: bool = False) -> list[TrainResult]:
    """Train the dictionary of each config (a RunConfig) on one stream of rows; what was begun is resumed.

    Rows are made under the locks of the run directories, so that a second process is refused before it works. Each
    run directory ends with `dictionary/`, whole or not at all. A run goes on from its newest valid checkpoint; a
    finished one is left as it is. On SIGTERM or SIGINT the step is finished, all runs are saved and SystemExit(143 or
    130) is raised. Raises ConfigError where the configs cannot share a stream, RunError where a directory is in use,
    holds another run, or a run cannot go on.
    """
    check_configs(configs)
    shared = configs[0]
    set_threads(shared.run.threads)
    with ExitStack() as stack:
        directories = [RunDirectory(config.run.dir) for config in configs]
        for directory in directories:
            stack.enter_context(directory.locked())
        recorded = [read_calibration(directory.path) for directory in directories if directory.has_begun()]
        source = make_source(next(iter(recorded), None))
        runs: list[Run] = []
        for config, directory in zip(configs, directories, strict=True):
            runs.append(Run(config, directory, source, allow_inexact))
            stack.callback(runs[-1].close)
        request = stack.enter_context(stop_on_signals())
        if not all(run.trainer.finished for run in runs):
            stream = ShuffledRows(source, shared.activations.ring_rows, shared.run.seed)
            stack.callback(stream.close)
            _consume(runs, stream, _restore(stream, runs), request)
        return [run.finish() for run in runs]


def check_configs(configs: Sequence[Any]) -> None:
    """Raise ConfigError where configs cannot be trained together, naming the keys that differ."""
    if not configs:
        raise ConfigError("no config is given to train.")
    first = configs[0]
    dumped = [config.model_dump(mode="json") for config in configs]
    for config, values in zip(configs, dumped, strict=True):
        check_ring(config.activations.ring_rows, config.training.batch_rows)
        keys = changed_keys(dumped[0], values)
        differing = [key for key in keys if any(key == s or key.startswith(s + ".") for s in SHARED)]
        if differing:
            raise ConfigError(
                f"the configs of {first.run.dir} and {config.run.dir} differ in {', '.join(differing)}. Runs on one "
                f"stream have the same {', '.join(SHARED)}; train the others by themselves."
            )
    directories = [config.run.dir.resolve() for config in configs]
    if len(set(directories)) < len(directories):
        raise ConfigError("two configs have the same run.dir. Give each run a directory of its own.")


def _restore(stream: ShuffledRows, runs: list[Run]) -> int:
    """Put the stream where the run that is furthest behind stands; the number of blocks taken until there."""
    behind = min((run for run in runs if not run.trainer.finished), key=lambda run: run.trainer.n_blocks)
    if behind.loaded is not None:
        stream.restore(behind.loaded.stream, behind.loaded.facts.stream)
    for run in runs:
        run.forget_loaded()
    return behind.trainer.n_blocks


def _consume(runs: list[Run], stream: ShuffledRows, n_blocks: int, request: StopRequest) -> None:
    """Give each block to every run that stands before it, until all are finished. Runs ahead wait for the others."""
    request.nothing_to_save = n_blocks == 0
    while active := [run for run in runs if not run.trainer.finished]:
        block = stream.next_block()
        if block is None:
            raise DataError("the rows ended before training.n_tokens. Give more data or fewer tokens.")
        request.nothing_to_save = False
        taking = [run for run in active if run.trainer.n_blocks == n_blocks]
        n_blocks += 1
        for run in taking:
            run.advance(block)
        for run in taking:
            if run.stalled():
                raise run.give_up(stream)
            if run.due() or (request.signal is not None and run.trainer.n_begun > run.saved_step):
                run.save(stream)
        if request.signal is not None:
            steps = ", ".join(f"{run.directory.path} at step {run.saved_step}" for run in runs)
            _logger.info("stopped by %s, saved %s; the same command goes on", Signals(request.signal).name, steps)
            raise SystemExit(128 + request.signal)
