"""Who may use a run directory, and what belongs to it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from saetools.errors import FormatError, RunError
from saetools.training.run_directory import RunDirectory, changed_keys, read_calibration

HOLD = """
import sys, time
from saetools.training.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_user_is_refused_at_once_and_a_dead_one_forgotten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = time.monotonic()
        with pytest.raises(RunError, match=f"in use by process {holder.pid} on "), RunDirectory(run).locked():
            pass
        waited = time.monotonic() - before
        assert waited < 1  # a contract of the lock, not a measure of speed
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (run / "owner.json").exists()  # left by the dead
    with RunDirectory(run).locked():
        assert json.loads((run / "owner.json").read_text())["pid"] == os.getpid()
    assert not (run / "owner.json").exists()


def test_the_same_process_cannot_have_it_twice(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).locked():
        with pytest.raises(RunError, match=f"process {os.getpid()}"), RunDirectory(tmp_path).locked():
            pass
    with RunDirectory(tmp_path).locked():
        pass


def test_a_lock_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()  # as one that belongs to somebody else
    with pytest.raises(RunError, match="lock cannot be locked"), RunDirectory(tmp_path).locked():
        pass


def test_a_directory_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunDirectory(tmp_path / "run").locked():
        raise KeyError
    assert not (tmp_path / "run").exists()
    with RunDirectory(tmp_path / "run").locked():
        (tmp_path / "run" / "x").write_text("x")
    assert (tmp_path / "run" / "x").exists()


def test_changed_keys() -> None:
    old = {"a": 1, "b": {"c": 2, "d": None}}
    assert changed_keys(old, {"a": 1, "b": {"c": 3, "d": None}}) == ["b.c"]
    assert changed_keys(old, {"a": 1, "b": {"c": 2}, "e": {"f": 1}}) == ["b.d", "e.f"]
    assert changed_keys(old, old) == []


def test_calibration_and_config_of_a_run(program: ModuleType, straight: Path, rows: Path, tmp_path: Path) -> None:
    config = program.tiny_config(rows, straight)
    source = program.tiny_source(config)(None)
    assert read_calibration(straight) == source.calibration
    with pytest.raises(
        FormatError, match=r"calibration\.json does not exist\. The run in .* cannot go on without it: put"
    ):
        read_calibration(tmp_path)
    (tmp_path / "calibration.json").write_text('{"scale": 1}')
    with pytest.raises(FormatError, match=r"calibration\.json is not a calibration"):
        read_calibration(tmp_path)
    RunDirectory(straight).check_same(config, source.fingerprint(), source.calibration)
    with pytest.raises(RunError, match=r"another dictionary\.n_features \(see"):
        other = program.tiny_config(rows, straight, **{"dictionary.n_features": 64, "logging.every_steps": 9})
        RunDirectory(straight).check_same(other, source.fingerprint(), source.calibration)


@pytest.mark.parametrize("content", ["", "{}", "[]", "5", "null", '{"versions": {}}'])
@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_a_damaged_record_is_named(
    train_tiny: Callable[..., Any], straight: Path, tmp_path: Path, name: str, content: str
) -> None:
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    (run / name).write_text(content)
    is_config = isinstance(yaml.safe_load(content), dict) and name == "config.yaml"
    with pytest.raises(RunError if is_config else FormatError, match=name):
        train_tiny(run)


def test_a_run_goes_on_where_its_rows_were_moved(
    program: ModuleType, straight: Path, rows: Path, tmp_path: Path
) -> None:
    moved, other = tmp_path / "moved.npy", tmp_path / "other.npy"
    shutil.copy(rows, moved)
    x_ND = np.load(rows)
    x_ND[-1, -1] += 1
    np.save(other, x_ND)
    for path in (moved, other):
        config = program.tiny_config(path, straight)
        source = program.tiny_source(config)(None)
        if path == moved:
            RunDirectory(straight).check_same(config, source.fingerprint(), source.calibration)
        else:
            with pytest.raises(RunError, match=r"another activations\.path \(see"):
                RunDirectory(straight).check_same(config, source.fingerprint(), source.calibration)


def test_a_run_begun_before_a_section_existed_goes_on(
    program: ModuleType, straight: Path, rows: Path, tmp_path: Path
) -> None:
    config = program.tiny_config(rows, straight)
    source = program.tiny_source(config)(None)
    older = shutil.copytree(straight, tmp_path / "older")
    recorded = yaml.safe_load((older / "config.yaml").read_text())
    del recorded["planted"], recorded["activations"]["prefetch"]
    (older / "config.yaml").write_text(yaml.safe_dump(recorded))
    RunDirectory(older).check_same(config, source.fingerprint(), source.calibration)
    (older / "config.yaml").write_text(yaml.safe_dump(recorded | {"planted": {"n_features": 9}}))
    with pytest.raises(RunError, match=r"another planted\.n_features"):
        RunDirectory(older).check_same(config, source.fingerprint(), source.calibration)
