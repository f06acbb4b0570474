"""Construction runs on the stream and in the directories of training: metrics, end when full, resume bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saetools.errors import ConfigError, DataError
from saetools.formats.load import load
from saetools.formats.native import load_unfolded
from saetools.training.checkpoint import checkpoint_paths
from saetools.training.construction import ConstructionTrainer

KIND = {"dictionary.kind": "itda", "dictionary.n_features": 150, "dictionary.min_cosine": 0.97}


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that few atoms do not explain, so that a dictionary goes on growing."""
    path = tmp_path_factory.mktemp("gaussian") / "rows.npy"
    np.save(path, (5 * np.random.default_rng(1).normal(size=(8000, 12))).astype(np.float32))
    return path


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def fail_once_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    take = ConstructionTrainer._step

    def failing(self: ConstructionTrainer, batch: Any) -> Any:
        if self.state.step == step:
            raise KeyError("killed")
        return take(self, batch)

    patch.setattr(ConstructionTrainer, "_step", failing)


def test_a_run_ends_when_it_is_full(train_tiny: Callable, gaussian: Path, tmp_path: Path) -> None:
    result = train_tiny(tmp_path / "run", rows=gaussian, **{**KIND, "dictionary.n_features": 60})
    assert result.n_tokens < 7200 and result.n_steps == result.n_tokens // 120
    dictionary = load(tmp_path / "run")
    assert dictionary.full
    rows = torch.from_numpy(np.load(gaussian))[dictionary.where_F2[:, 1]]
    torch.testing.assert_close(dictionary.W_dec_FD, torch.nn.functional.normalize(rows, dim=1))
    again = train_tiny(tmp_path / "run", rows=gaussian, **{**KIND, "dictionary.n_features": 60})
    assert again == result


def test_a_resumed_run_is_the_straight_one(
    train_tiny: Callable, gaussian: Path, tmp_path: Path, digests: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**KIND, "dictionary.k": 3, "dictionary.min_cosine": 0.96, "dictionary.n_features": 4000}
    result = train_tiny(tmp_path / "straight", rows=gaussian, **changes)
    assert result.n_tokens == 7200
    assert lines(tmp_path / "straight")[0]["loss/reconstruction"] == pytest.approx(1, rel=0.2), "no atoms, scaled rows"
    n_atoms = [line["loss/n_atoms"] for line in lines(tmp_path / "straight")]
    assert any(line["l0"] % 1 for line in lines(tmp_path / "straight")), "a mean over rows"
    assert all(line["n_dead"] <= line["loss/n_atoms"] for line in lines(tmp_path / "straight"))
    assert n_atoms == sorted(n_atoms) and n_atoms[-1] > n_atoms[6] > 0
    with monkeypatch.context() as patch:
        fail_once_at_step(patch, 30)
        with pytest.raises(KeyError):
            train_tiny(tmp_path / "killed", rows=gaussian, **changes)
    kept = checkpoint_paths(tmp_path / "killed" / "checkpoints")[-1]
    known = int(load_unfolded(kept / "dictionary").dictionary.n_atoms)
    train_tiny(tmp_path / "killed", rows=gaussian, **changes)
    assert 0 < known < int(load(tmp_path / "killed").n_atoms)
    assert digests(tmp_path / "killed") == digests(tmp_path / "straight")


def test_rows_that_are_not_finite_are_named(train_tiny: Callable, gaussian: Path, tmp_path: Path) -> None:
    rows = np.load(gaussian)
    rows[3000, 5] = np.nan
    np.save(tmp_path / "bad.npy", rows)
    with pytest.raises(DataError, match="not finite"):
        train_tiny(tmp_path / "run", rows=tmp_path / "bad.npy", **KIND)


@pytest.mark.parametrize(("setting", "value"), [("training.impl", "fused"), ("training.compute", "bf16")])
def test_construction_is_plain_and_in_float32(
    train_tiny: Callable, gaussian: Path, tmp_path: Path, setting: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is {value}, but .* constructed"):
        train_tiny(tmp_path / "run", rows=gaussian, **{**KIND, setting: value})
