"""Runs on a host and on its store: resumed exactly, and equal to each other bit for bit."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saetools.activations.harvest import harvest_points
from saetools.activations.sources import make_source
from saetools.records import Calibration
from saetools.training.loop import train
from saetools.training.trainer import Trainer

WHOLE_EPOCH = 10**6
SETTINGS = {
    "activations.point": "mixed",
    "activations.ring_rows": 1024,
    "activations.calibration_rows": 200,
    "training.n_tokens": 3600,
}


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """The fake host and corpus of the activation tests."""
    path = Path(__file__).parents[1] / "activations" / "conftest.py"
    spec = importlib.util.spec_from_file_location("fake_activations", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train_on(program: ModuleType, fakes: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """train_on(name, **changes) -> run directory of a run on the fake host or its store."""

    def run(name: str, **changes: Any) -> Path:
        config = program.tiny_config(tmp_path / "store", tmp_path / name, **{**SETTINGS, **changes})

        def make(calibration: Calibration | None) -> Any:
            return make_source(config.activations, "train", fakes.FakeHost(), fakes.make_token_plan(), calibration)

        train([config], make)
        return config.run.dir

    return run


@pytest.mark.parametrize(
    ("source", "step"),
    [
        ({"activations.source": "live"}, 22),
        ({"activations.source": "live", "activations.prefetch": 2}, 13),
        ({"activations.source": "cached"}, 5),
    ],
    ids=["live", "prefetched", "cached"],
)
def test_every_source_resumes_exactly(
    source: dict[str, Any],
    step: int,
    train_on: Callable,
    digests: Callable,
    fakes: ModuleType,
    program: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = program.tiny_config(tmp_path, tmp_path, **{**SETTINGS, "activations.source": "live"})
    made = harvest_points(
        fakes.FakeHost(), fakes.make_token_plan(), ["mixed"], config.activations, tmp_path / "stores", WHOLE_EPOCH
    )
    (tmp_path / "store").symlink_to(made["mixed"])
    straight = train_on("straight", **{"activations.source": "live"})
    take = Trainer._step

    def failing(self: Trainer, batch: Any) -> Any:
        if self.state.step == step:
            raise KeyError("planned")
        return take(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", failing)
        with pytest.raises(KeyError):
            train_on("run", **source)
    assert digests(train_on("run", **source)) == digests(straight)
