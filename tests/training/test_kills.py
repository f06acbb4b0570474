"""kill -9 at any instant, a third of the kills while a checkpoint is written: the uninterrupted run's bits remain."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROGRAM, ROOT = Path(__file__).with_name("tiny_program.py"), Path(__file__).parents[2]
N_STEPS = 60
N_OPERATIONS = 700  # fewer than an uninterrupted run does to the disk
N_OPERATIONS_OF_A_SAVE = 80  # as many as writing a checkpoint takes, or fewer
SEEDS = range(4)


def kill_until_done(spawn: Callable, run_dir: Path, kills: list[dict[str, Any]]) -> None:
    """Run the tiny program once per planned kill, each of which must take place, and then to its end."""
    for kill in kills:
        done = spawn(run_dir, **kill)
        assert done.returncode == -signal.SIGKILL, f"{kill} did not take place. {done.stderr}"
    done = spawn(run_dir)
    assert done.returncode == 0, done.stderr


def check(run_dir: Path, straight: Path, digests: Callable) -> None:
    assert digests(run_dir) == digests(straight)
    left = [p.name for p in run_dir.rglob("*") if re.search(r"\.(tmp|old)-", p.name)]
    assert not left
    assert len(list((run_dir / "checkpoints").iterdir())) == 2


def at_steps(*steps: int) -> list[dict[str, Any]]:
    return [{"KILL_AT_STEP": step} for step in steps]


def in_saves(*places: str) -> list[dict[str, Any]]:
    return [{"KILL_IN_SAVE": place} for place in places]


def six_kills(seed: int) -> list[dict[str, Any]]:
    """Kills of one run: after four steps in ascending order, and at random operations of two saves in between."""
    random = np.random.default_rng(seed)
    steps = sorted(random.choice(np.arange(1, N_STEPS + 1), 4, replace=False).tolist())
    kills = at_steps(*steps)
    for _ in range(2):  # of the next checkpoint, so before the last step: that one is still to come then
        place = f"1:{random.integers(1, N_OPERATIONS_OF_A_SAVE)}"
        kills.insert(int(random.integers(0, len(kills))), *in_saves(place))
    return kills


PLANNED = [*at_steps(1), *in_saves("1:8"), *at_steps(20, 37), *in_saves("2:33"), *at_steps(60)]


def test_six_kills(spawn: Callable, straight: Path, tmp_path: Path, digests: Callable) -> None:
    kill_until_done(spawn, tmp_path / "run", PLANNED)
    check(tmp_path / "run", straight, digests)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_six_kills_at_random(seed: int, spawn: Callable, straight: Path, tmp_path: Path, digests: Callable) -> None:
    kill_until_done(spawn, tmp_path / "run", six_kills(seed))
    check(tmp_path / "run", straight, digests)


@pytest.mark.slow
@pytest.mark.parametrize("operation", range(5, N_OPERATIONS, 58))
def test_a_kill_at_any_operation(
    operation: int, spawn: Callable, straight: Path, tmp_path: Path, digests: Callable
) -> None:
    kill_until_done(spawn, tmp_path / "run", [{"KILL_AT_OPERATION": operation}])
    check(tmp_path / "run", straight, digests)


def test_the_tally() -> None:
    """What the tests above kill, each kill being one that must take place: enough, and a third while saving."""
    assert len(PLANNED) >= 6
    kills = [*PLANNED, *(kill for seed in SEEDS for kill in six_kills(seed))]
    n_in_saves = sum("KILL_IN_SAVE" in kill for kill in kills)
    assert len(kills) >= 20 and 3 * n_in_saves >= len(kills)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_v4_a_signal_saves_and_the_run_goes_on(
    number: int, code: int, spawn: Callable, straight: Path, tmp_path: Path, digests: Callable
) -> None:
    """SAELens: SIGINT and SIGTERM crash its trainer, and nothing is saved."""
    rarely = "training.checkpoint_every_tokens=1000000"  # so that only the signal saves
    stopped = spawn(tmp_path / "run", rarely, STOP_AT_STEP=21, STOP_SIGNAL=int(number))
    assert stopped.returncode == code, stopped.stderr
    assert f"stopped by {signal.Signals(number).name}, saved {tmp_path / 'run'} at step 25" in stopped.stderr
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["0000000025"]  # the end of its block
    assert not (tmp_path / "run" / "dictionary").exists()
    assert spawn(tmp_path / "run", rarely).returncode == 0
    check(tmp_path / "run", straight, digests)


def test_a_second_signal_exits_at_once(spawn: Callable, straight: Path, tmp_path: Path, digests: Callable) -> None:
    stopped = spawn(tmp_path / "run", STOP_AT_STEP=21, STOP_SIGNAL=int(signal.SIGTERM), STOP_TWICE=1)
    assert stopped.returncode == 143
    assert max(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == "0000000017"
    assert spawn(tmp_path / "run").returncode == 0
    check(tmp_path / "run", straight, digests)


def test_surroundings_change_nothing(rows: Path, straight: Path, tmp_path: Path, digests: Callable) -> None:
    """Of a process that starts as a user's does: the others of this file are forks of one that has its imports."""
    run = tmp_path / "a dir of ünïcode 漢" / ("long" * 40)
    surroundings = {"LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "HOME": "/nonexistent"}
    mask = os.umask(0o077)
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **surroundings}
        command = [sys.executable, str(PROGRAM), str(rows), str(run)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    finally:
        os.umask(mask)
    assert done.returncode == 0, done.stderr
    check(run, straight, digests)
