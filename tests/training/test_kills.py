"""kill -9 at any instant, a third of the kills within checkpoint writes: the bits of the uninterrupted run remain."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

N_STEPS = 60
N_OPERATIONS = 400  # about what a run of the tiny program does to the disk, resumption included


def kill_until_done(spawn: Callable, run_dir: Path, kills: list[dict[str, int]]) -> int:
    """Run the tiny program once per planned kill and then to its end; the number of kills that took place."""
    n_killed = 0
    for kill in kills:
        done = spawn(run_dir, **kill)
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        n_killed += done.returncode == -signal.SIGKILL
    done = spawn(run_dir)
    assert done.returncode == 0, done.stderr
    return n_killed


def check(run_dir: Path, straight: Path, digests: Callable) -> None:
    assert digests(run_dir) == digests(straight)
    left = [p.name for p in run_dir.rglob("*") if re.search(r"\.(tmp|old)-", p.name)]
    assert not left
    assert len(list((run_dir / "checkpoints").iterdir())) == 2


def test_six_kills(spawn: Callable, straight: Path, tmp_path: Path, digests: Callable) -> None:
    steps = [{"KILL_AT_STEP": step} for step in (1, 20, 37, 60)]
    writes = [{"KILL_AT_OPERATION": operation} for operation in (60, 85)]
    kills = [steps[0], writes[0], steps[1], steps[2], writes[1], steps[3]]
    assert kill_until_done(spawn, tmp_path / "run", kills) == 6
    check(tmp_path / "run", straight, digests)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(7))
def test_twenty_kills_at_random(seed: int, spawn: Callable, straight: Path, tmp_path: Path, digests: Callable) -> None:
    random = np.random.default_rng(seed)
    kills = [
        {"KILL_AT_OPERATION": int(random.integers(20, N_OPERATIONS // 2))},
        {"KILL_AT_STEP": int(random.integers(10, N_STEPS - 10))},
        {"KILL_AT_STEP": int(random.integers(N_STEPS - 15, N_STEPS))},
    ]
    order = random.permutation(3)
    n_killed = kill_until_done(spawn, tmp_path / "run", [kills[i] for i in order])
    assert n_killed >= 1
    check(tmp_path / "run", straight, digests)


@pytest.mark.slow
@pytest.mark.parametrize("operation", range(3, N_OPERATIONS, 37))
def test_kills_within_checkpoint_writes(
    operation: int, spawn: Callable, straight: Path, tmp_path: Path, digests: Callable
) -> None:
    kill_until_done(spawn, tmp_path / "run", [{"KILL_AT_OPERATION": operation}])
    check(tmp_path / "run", straight, digests)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on(
    number: int, code: int, spawn: Callable, straight: Path, tmp_path: Path, digests: Callable
) -> None:
    stopped = spawn(tmp_path / "run", STOP_AT_STEP=21, STOP_SIGNAL=int(number))
    assert stopped.returncode == code, stopped.stderr
    assert max(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == "0000000025"  # the end of its block
    assert not (tmp_path / "run" / "dictionary").exists()
    assert spawn(tmp_path / "run").returncode == 0
    check(tmp_path / "run", straight, digests)


def test_a_second_signal_exits_at_once(spawn: Callable, straight: Path, tmp_path: Path, digests: Callable) -> None:
    stopped = spawn(tmp_path / "run", STOP_AT_STEP=21, STOP_SIGNAL=int(signal.SIGTERM), STOP_TWICE=1)
    assert stopped.returncode == 143
    assert max(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == "0000000017"
    assert spawn(tmp_path / "run").returncode == 0
    check(tmp_path / "run", straight, digests)


def test_surroundings_change_nothing(straight: Path, tmp_path: Path, digests: Callable, spawn: Callable) -> None:
    run = tmp_path / "a dir of ünïcode 漢" / ("long" * 40)
    mask = os.umask(0o077)
    try:
        done = spawn(run, LC_ALL="C", LANG="C", TZ="Asia/Kathmandu", PYTHONHASHSEED="7", HOME="/nonexistent")
    finally:
        os.umask(mask)
    assert done.returncode == 0, done.stderr
    check(run, straight, digests)
