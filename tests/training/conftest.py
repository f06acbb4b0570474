"""Tiny runs on a rows file, and what of a run must be equal bit for bit."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("tiny_program.py")
ROOT = Path(__file__).parents[2]


def _load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_program", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def program() -> ModuleType:
    return _load_program()


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 rows of width 12 made of sparse directions, some of which never end up used by a small dictionary.

    They are a fifth as long as scaled rows, so that what forgets to scale is seen.
    """
    random = np.random.default_rng(0)
    atoms = random.normal(size=(40, 12)) / 12**0.5
    code = random.exponential(size=(5000, 40)) * (random.random((5000, 40)) < 0.1)
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    x_ND = code @ atoms + 0.3 + 0.01 * random.normal(size=(5000, 12))
    np.save(path, (x_ND / 5).astype(np.float32))
    return path


@pytest.fixture
def train_tiny(program: ModuleType, rows: Path) -> Callable[..., Any]:
    """train_tiny(run_dir, **changes) -> TrainResult, in this process."""
    from saetools.training.loop import train

    def run(run_dir: Path, allow_inexact: bool = False, rows: Path = rows, **changes: Any) -> Any:
        config = program.tiny_config(rows, run_dir, **changes)
        return train([config], program.tiny_source(config), allow_inexact)[0]

    return run


class Done(NamedTuple):
    """How a process ended, and what it said."""

    returncode: int
    stderr: str


@pytest.fixture(scope="session")
def spawn(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Done]]:
    """spawn(run_dir, *changes, **environment): the tiny program in a process of its own, waited for."""
    output = tmp_path_factory.mktemp("spawned") / "output"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), "serve"]
    with subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, text=True) as server:
        assert server.stdin and server.stdout

        def run(run_dir: Path, *changes: str, **environment: Any) -> Done:
            output.unlink(missing_ok=True)
            asked = {
                "arguments": [str(rows), str(run_dir), *changes],
                "environment": {name: str(value) for name, value in environment.items()},
                "output": str(output),
            }
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            return Done(int(server.stdout.readline()), output.read_text())

        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """sha256 of what of a run may not differ: final weights, metrics, and all tensors of the newest checkpoint."""

    def of(run_dir: Path) -> dict[str, str]:
        newest = max((run_dir / "checkpoints").iterdir())
        files = {
            "dictionary": run_dir / "dictionary" / "model.safetensors",
            "metrics": run_dir / "metrics.jsonl",
            **{name: newest / f"{name}.safetensors" for name in ("optimizer", "state", "stream")},
            "checkpointed": newest / "dictionary" / "model.safetensors",
        }
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}

    return of


@pytest.fixture(scope="session")
def straight(program: ModuleType, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted tiny run."""
    from saetools.training.loop import train

    config = program.tiny_config(rows, tmp_path_factory.mktemp("straight") / "run")
    train([config], program.tiny_source(config))
    return config.run.dir
