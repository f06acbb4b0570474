"""wandb may do what it wants: the run's bytes stay the same, and there is at most one warning."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class FakeRun:
    def __init__(self, fail_at: int) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished, self.fail_at = 0, fail_at

    def log(self, record: dict[str, Any], step: int) -> None:
        if len(self.logged) == self.fail_at:
            raise ConnectionError("wandb is gone")
        self.logged.append((step, record))

    def finish(self) -> None:
        self.finished += 1


def fake_wandb(monkeypatch: pytest.MonkeyPatch, init: Callable[..., Any]) -> None:
    module = ModuleType("wandb")
    module.init, module.Settings = init, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)


MIRRORED = {"logging.wandb": "offline"}


def test_the_mirror_shows_the_record(
    train_tiny: Callable, straight: Path, tmp_path: Path, digests: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, given = FakeRun(-1), {}
    fake_wandb(monkeypatch, lambda **kwargs: given.update(kwargs) or run)
    train_tiny(tmp_path / "run", **MIRRORED)
    assert digests(tmp_path / "run") == digests(straight)
    assert [step for step, _ in run.logged] == [1, *range(3, 61, 3)]
    assert run.finished == 1
    assert given["mode"] == "offline"
    assert given["config"]["dictionary"]["k"] == 4
    first_id = given["id"]
    train_tiny(tmp_path / "run", **MIRRORED)
    assert given["id"] == first_id


@pytest.mark.parametrize("fail_at", ["init", 0, 3])
def test_a_broken_mirror_changes_nothing(
    fail_at: str | int,
    train_tiny: Callable,
    straight: Path,
    tmp_path: Path,
    digests: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def init(**kwargs: Any) -> FakeRun:
        if fail_at == "init":
            raise RuntimeError("no network")
        return FakeRun(int(fail_at))

    fake_wandb(monkeypatch, init)
    with caplog.at_level(logging.WARNING):
        train_tiny(tmp_path / "run", **MIRRORED)
    assert digests(tmp_path / "run") == digests(straight)
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_wandb_is_not_imported_unless_asked_for(
    train_tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    train_tiny(tmp_path / "run", **{"training.n_tokens": 1000})


@pytest.mark.slow
def test_the_real_wandb_offline(
    train_tiny: Callable, straight: Path, tmp_path: Path, digests: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "saetools"):
        train_tiny(tmp_path / "run", **MIRRORED)
    assert not [record for record in caplog.records if record.name.startswith("saetools")]
    assert digests(tmp_path / "run") == digests(straight)
    assert list((tmp_path / "run" / "mirror").rglob("*.wandb"))
