"""Rates of the main path on this machine: `bench_path.py [--tokens N] [--section.field value ...]`.

Harvests rows of the demo's config to a store, then trains the demo's dictionary on them live, from the store and from
a rows file. Rates are of whole runs after their first logged step: importing, calibration and filling the shuffle ring
are left out, checkpoints are not. Prints nothing but the failure where the live and the cached run differ in a bit.
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saetools import pipeline
from saetools.activations.store import CachedSource
from saetools.errors import SaetoolsError
from saetools.training.run_directory import RunDirectory

EVERY_STEPS = 2
"""Steps between two logged ones."""


def rate(run: Path) -> float:
    """Rows per second of a run between its first logged step and its last."""
    lines = [json.loads(line) for line in RunDirectory(run).timing.read_text().splitlines()]
    n_rows = sum(line["seconds"] * line["tokens_per_second"] for line in lines[1:])
    return n_rows / sum(line["seconds"] for line in lines[1:])


def write_rows(store: CachedSource, path: Path) -> None:
    """All rows of a store as one matrix on disk."""
    epoch = islice(store.batches(), store.manifest.n_batches)
    np.save(path, torch.cat([rows.x_ND for _, rows in epoch]).float().numpy())


def measure(directory: Path, overrides: list[str]) -> list[tuple[str, float]]:
    """(what, rows per second) of each way."""

    def config(name: str, **changes: Any) -> Any:
        options = [f"--activations.{key}={value}" for key, value in changes.items()]
        return pipeline.read_config("quickstart", [*overrides, f"--run.dir={directory / name}", *options])

    def trained(name: str, **changes: Any) -> float:
        pipeline.train([config(name, **changes)])
        return rate(directory / name)

    live = config("live")
    if live.training.n_tokens < (least := 2 * EVERY_STEPS * live.training.batch_rows):
        sys.exit(f"--tokens is {live.training.n_tokens}; {least} is the least that has two logged steps")
    pipeline.Data(live).host.spec(live.activations.point)  # so that importing and probing is not timed
    n_rows, began = pipeline.rows_needed(live), time.perf_counter()
    (path,) = pipeline.harvest(live, directory / "stores", [live.activations.point], n_rows).values()
    store, seconds = CachedSource(path), time.perf_counter() - began
    n_made = store.manifest.n_rows + min(live.activations.calibration_rows, store.manifest.n_rows)
    write_rows(store, directory / "x.npy")
    found = [
        ("harvest to disk", n_made / seconds),
        ("train live", trained("live")),
        ("train cached", trained("cached", source="cached", path=path)),
        ("train rows", trained("rows", source="rows", path=directory / "x.npy")),
    ]
    weights = [(directory / n / "dictionary" / "model.safetensors").read_bytes() for n in ("live", "cached")]
    if weights[0] != weights[1]:
        sys.exit("the live and the cached run differ: no figures")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=150_000, help="rows to train on")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        quiet = [
            f"--training.n_tokens={arguments.tokens}",
            f"--logging.every_steps={EVERY_STEPS}",
            "--logging.progress=false",
        ]
        try:
            found = measure(Path(name), [*quiet, *overrides])
        except SaetoolsError as error:
            sys.exit(str(error))
        for what, rows_per_second in found:
            print(f"{what:16} {rows_per_second:10,.0f} rows/s")


if __name__ == "__main__":
    main()
