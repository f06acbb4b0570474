"""Harvests that die: run by test_harvest.py in a process of its own, which forks one child per attempt.

Usage: harvest_program.py DIRECTORY STEP. A child counts its system calls that change the disk and kills itself with
SIGKILL at the k-th, before it, or in the middle of it where it writes; k = 1, 1 + STEP, ... Prints one JSON object.
"""

import importlib.util
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import torch

from saetools.activations.harvest import harvest
from saetools.activations.live import live_sources

SHARD_BYTES, CALIBRATION_ROWS, N_ROWS = 2000, 100, 10**9
CALLS = ("write", "fsync", "replace", "unlink", "open", "mkdir")


def load_fakes():
    spec = importlib.util.spec_from_file_location("fakes", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAKES = load_fakes()


def run_harvest(directory: Path) -> None:
    sources = live_sources(FAKES.FakeHost(), FAKES.make_token_plan(), ["embed", "mixed"], "bfloat16")
    harvest({directory / point: source for point, source in sources.items()}, N_ROWS, CALIBRATION_ROWS, SHARD_BYTES)


def die_at(k: int) -> None:
    """Make the k-th of the calls from now on the last thing that this process does."""
    count = 0

    def dying(name, original):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == k:
                if name == "write":
                    original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, dying(name, getattr(os, name)))


def attempt(directory: Path, k: int | None) -> bool:
    """Harvest in a child that dies at call k; whether it finished."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if k is not None:
                die_at(k)
            run_harvest(directory)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, f"attempt {k} failed"
    return True


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def committed(directory: Path) -> dict[str, float]:
    """Shards on disk with their times of writing."""
    return {str(f.relative_to(directory)): f.stat().st_mtime_ns for f in directory.rglob("*.bin") if commit_of(f)}


def commit_of(shard: Path) -> bool:
    return shard.with_suffix(".record.json").exists() or (shard.parent / "manifest.json").exists()


def main(root: Path, step: int) -> None:
    torch.set_num_threads(1)
    attempt(root / "reference", None)
    reference = contents(root / "reference")
    kills, k = 0, 1 - step
    while True:
        k += step
        work = root / "work"
        if attempt(work, k):
            break
        kills += 1
        before = committed(work) if work.exists() else {}
        assert attempt(work, None)
        after = committed(work)
        assert all(after[name] == time for name, time in before.items()), f"kill {k}: a complete shard was written anew"
        assert contents(work) == reference, f"kill {k}: {sorted(contents(work))}"
        shutil.rmtree(work)
    chains = 0
    for seed in range(1 if step > 1 else 5):  # several kills until it is done
        rng, work = random.Random(seed), root / f"chain{seed}"
        while not attempt(work, rng.randrange(1, k)):
            chains += 1
        assert contents(work) == reference, f"chain {seed}"
    json.dump({"kills": kills, "chain_kills": chains, "files": sorted(reference)}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
