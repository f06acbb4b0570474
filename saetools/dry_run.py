"""What a run would take, before it takes it: shapes, tokens, memory, disk and an estimate of the time.

Nothing is written. Time is measured on the spot (one warm-up and two timed forward passes of the host and training
steps on random rows), so it holds for this machine as busy as it is now.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from saetools.activations.base import ActivationBatch
from saetools.activations.shuffle import ring_bytes
from saetools.dictionaries.base import make_dictionary
from saetools.pipeline import Data
from saetools.records import Calibration
from saetools.training.construction import make_trainer
from saetools.training.environment import set_threads
from saetools.training.opening import started_dictionary
from saetools.training.run_directory import RunDirectory
from saetools.training.schedule import checkpoint_steps, make_plan
from saetools.training.trainer import Trainer


def describe(config: Any) -> list[tuple[str, str]]:
    """(what, amount) rows of the estimate. Raises what the run itself would raise at this config."""
    set_threads(config.run.threads)
    data = Data(config)
    d_model, has_gradients, rows_per_second = _rows(config, data)
    plan = make_plan(config.training, config.dictionary.n_features)
    trainer = _trainer(config, d_model, data.dictionary_device)
    n_parameters = sum(p.numel() for p in trainer.dictionary.parameters())
    n_bytes = sum(t.nbytes for t in trainer.dictionary.state_dict().values())
    n_bytes += sum(t.nbytes for t in trainer.optimizer.tensors().values())
    settings, free = config.activations, _free(config.run.dir)
    ring = ring_bytes(settings.ring_rows, d_model, settings.dtype, int(has_gradients))
    checkpoint = n_bytes + ring
    n_kept = min(config.training.keep_checkpoints, -(-plan.n_steps // checkpoint_steps(config.training)))
    step_seconds = _seconds(_step(trainer, plan.batch_rows, d_model))
    seconds = plan.n_steps * step_seconds
    found = [
        (
            "point",
            f"{settings.point} of {config.host.name}" if data.has_host else str(settings.path or settings.source),
        ),
        ("dictionary", f"{config.dictionary.kind}, {config.dictionary.n_features} features of width {d_model}"),
        ("parameters", f"{n_parameters:,}"),
        ("rows", f"{plan.n_tokens:,} in {plan.n_steps:,} steps of {plan.batch_rows:,}"),
        ("learning rate", f"{plan.peak_lr:.3g} after {plan.warmup_steps} steps"),
        ("memory", f"{(n_bytes + ring) / 1e6:.0f} MB: weights and Adam {n_bytes / 1e6:.0f}, ring {ring / 1e6:.0f}"),
        ("disk", f"{n_kept * checkpoint / 1e6:.0f} MB for {n_kept} checkpoints; {free / 1e9:.1f} GB free"),
        ("training step", f"{1000 * step_seconds:.0f} ms"),
    ]
    if rows_per_second:
        found.append(("harvest", f"{rows_per_second:,.0f} rows/s"))
        seconds += (plan.n_tokens + config.activations.ring_rows) / rows_per_second
    return [*found, ("estimated time", f"{seconds / 60:.1f} minutes, evaluation not included")]


def _rows(config: Any, data: Data) -> tuple[int, bool, float | None]:
    """(width of the rows, whether they have gradients, rows per second of the host or None where they are read)."""
    settings = config.activations
    if settings.source != "live":
        source = data.source("train")
        return source.spec.d_model, source.calibration.gradient_rms is not None, None
    host = data.host
    point = host.canonical(settings.point)
    tokens = next(data.plan("train").batches())
    ids_BT, keep_BT = torch.from_numpy(tokens.ids_BT).to(host.device), torch.from_numpy(tokens.keep_BT)

    def read() -> Any:
        if settings.gradients:
            return host.activations_and_gradients(ids_BT, [point], keep_BT)
        return host.activations(ids_BT, [point])

    seconds = _seconds(read)
    return host.spec(point).d_model, settings.gradients, tokens.keep_BT.sum() / seconds


def _trainer(config: Any, d_model: int, device: torch.device) -> Trainer:
    if config.training.init_from is None or RunDirectory(config.run.dir).has_begun():  # a run that goes on has its own
        dictionary = make_dictionary(config.dictionary, d_model, config.run.seed)
    else:
        dictionary = started_dictionary(config, d_model)
    plan = make_plan(config.training, config.dictionary.n_features).model_copy(update={"n_steps": 10**9})
    return make_trainer(
        dictionary.to(device), plan, _unit_calibration(d_model), config.training.impl, config.training.compute
    )


def _unit_calibration(d_model: int) -> Calibration:
    """What rows of independent standard normals would measure."""
    return Calibration(
        scale=1.0,
        total_variance=float(d_model),
        median_norm=d_model**0.5,
        b_dec_start=(0.0,) * d_model,
        n_rows=1,
    )


def _step(trainer: Trainer, n_rows: int, d_model: int) -> Callable[[], Any]:
    block = ActivationBatch(
        torch.randn(n_rows, d_model, dtype=torch.float32), torch.zeros(n_rows, 2, dtype=torch.int64)
    )
    return lambda: [*trainer.consume(block), *trainer.settle()]


def _seconds(run: Callable[[], Any], n: int = 2) -> float:
    """The faster of n timed calls after one that is not timed."""
    run()
    times = []
    for _ in range(n):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _free(path: Path) -> int:
    """Free bytes where `path` would be."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free
