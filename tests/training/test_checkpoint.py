"""Saving fails at every operation in turn; damaged histories; what is kept and what is deleted."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetools import atomic
from saetools.errors import FormatError, RunError
from saetools.training.checkpoint import (
    Checkpoint,
    Facts,
    checkpoint_paths,
    load_newest,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from saetools.training.schedule import make_plan


def content(program: ModuleType, step: int) -> Checkpoint:
    config = program.tiny_config(Path("x"), Path("y"))
    facts = Facts(
        step=step,
        n_tokens=step * 128,
        n_skipped=0,
        n_skipped_in_row=0,
        adam_steps=step,
        metrics_bytes=0,
        n_blocks=step,
        stream={"refill": step},
        environment={"threads": 1},
        plan=make_plan(config.training, 48),
    )
    tensors = [{"a": torch.full((3,), float(step))} for _ in range(4)]
    return Checkpoint(facts, {}, *tensors)


@pytest.fixture
def save(program: ModuleType) -> Callable[..., Path]:
    from saetools.dictionaries.topk import TopK
    from saetools.formats.native import save_dictionary

    dictionary = TopK(TopK.configure(n_features=8, k=2), 4)

    def run(directory: Path, step: int, keep: int = 2) -> Path:
        return save_checkpoint(
            directory, content(program, step), lambda path: save_dictionary(dictionary, path, None), keep
        )

    return run


class FailingOs:
    """The os module as atomic.py sees it, its n-th operation failing, or leaving a short write before it fails."""

    def __init__(self, operations: tuple[str, ...], fail_at: int | None, code: int = errno.ENOSPC) -> None:
        self.operations, self.n_calls, self.fail_at, self.code = operations, 0, fail_at, code

    def __getattr__(self, name: str) -> Any:
        original = getattr(os, name)
        if name not in self.operations:
            return original

        def call(*args: Any, **kwargs: Any) -> Any:
            self.n_calls += 1
            if self.n_calls == self.fail_at:
                if name == "write":
                    original(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise OSError(self.code, os.strerror(self.code))
            return original(*args, **kwargs)

        return call


def test_every_failing_operation_leaves_the_previous_checkpoint(
    save: Callable, program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    counter = FailingOs(program.OPERATIONS, None)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "os", counter)
        save(tmp_path, 2)
    assert counter.n_calls > 50
    for n in range(1, counter.n_calls + 1):
        code = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)[n % 4]
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "os", FailingOs(program.OPERATIONS, n, code))
            with pytest.raises(RunError, match="cannot write"):
                save(tmp_path, 3)
        newest = load_newest(tmp_path)
        assert newest is not None
        assert newest.facts.step in {2, 3}  # 3 where only opening or syncing the parent failed
        if newest.facts.step == 3:
            assert n >= counter.n_calls - 1
        assert [p.name for p in checkpoint_paths(tmp_path)] == sorted(p.name for p in tmp_path.iterdir())


def test_what_is_saved_is_read(save: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_checkpoint(save(tmp_path, 7))
    assert checkpoint.facts.step == 7
    for part in (checkpoint.optimizer, checkpoint.state, checkpoint.queue, checkpoint.stream):
        assert set(part) == {"a"}
        assert part["a"].tolist() == [7.0] * 3
    assert checkpoint.weights["W_dec_FD"].shape == (8, 4)
    monkeypatch.setattr("saetools.training.checkpoint.VERSION", 2)
    with pytest.raises(FormatError, match="of version 1; this version reads 2"):
        read_checkpoint(tmp_path / "0000000007")


def test_nothing_and_nothing_valid(save: Callable, tmp_path: Path) -> None:
    assert load_newest(tmp_path / "none") is None
    path = save(tmp_path, 1)
    (path / "state.json").write_text("{}")
    with pytest.raises(FormatError, match=r"no checkpoint in .* is valid.*state\.json"):
        load_newest(tmp_path)


@pytest.mark.parametrize("file", ["state.json", "stream.safetensors", "dictionary/model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "swap"])
def test_every_damaged_file_is_named(
    save: Callable, tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    data = (newer / file).read_bytes()
    if damage == "delete":
        (newer / file).unlink()
    else:
        swapped = (older / file).read_bytes() if file != "dictionary/model.safetensors" else data[::-1]
        changed = {"flip": bytes([data[0] ^ 1]) + data[1:], "truncate": data[: len(data) // 2], "swap": swapped}
        (newer / file).write_bytes(changed[damage])
    with caplog.at_level(logging.WARNING):
        newest = load_newest(tmp_path)
    assert newest is not None
    assert newest.facts.step == 1
    named = "manifest.json" not in file or damage != "swap"  # an older manifest finds fault with the files
    assert str(newer) in caplog.text
    assert not named or Path(file).name in caplog.text


@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(2, 4))
def test_pruning_keeps_the_newest_valid_ones(tmp_path_factory: Any, valid: list[bool], keep: int) -> None:
    directory = tmp_path_factory.mktemp("history")
    for step, is_valid in enumerate(valid):
        with atomic.committed_directory(directory / f"{step:010d}") as temporary:
            atomic.write_text(temporary / "x", str(step))
        if not is_valid:
            (directory / f"{step:010d}" / "x").write_text("damaged")
    prune_checkpoints(directory, keep)
    left = [int(path.name) for path in checkpoint_paths(directory)]
    wanted = [step for step, is_valid in enumerate(valid) if is_valid][-keep:]
    assert set(wanted) <= set(left)
    if len(wanted) == keep:
        assert min(left) == wanted[0]  # nothing older is left
    else:
        assert left == list(range(len(valid)))  # too few valid ones: nothing is deleted
