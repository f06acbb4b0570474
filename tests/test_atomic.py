"""Writes appear whole or not at all: every operation is made to fail once, with several errors and short writes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saetools import atomic
from saetools.errors import RunError
from saetools.safeio import verify_directory

OPERATIONS = ("open", "write", "fsync", "replace", "rename", "mkdir")


class FailingOs:
    """The os module as atomic.py sees it, with the n-th of its operations failing."""

    def __init__(self, fail_at: int | None, code: int = errno.ENOSPC) -> None:
        self.calls, self.fail_at, self.code = 0, fail_at, code

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FailingOs":
        monkeypatch.setattr(atomic, "os", self)
        return self

    def __getattr__(self, name: str) -> Any:
        original = getattr(os, name)
        return self._counted(original) if name in OPERATIONS else original

    def _counted(self, original: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            self.calls += 1
            if self.calls == self.fail_at:
                raise OSError(self.code, os.strerror(self.code))
            return original(*args, **kwargs)

        return call


def write_pair(directory: Path) -> None:
    with atomic.committed_directory(directory / "made", replace=True) as temporary:
        atomic.write_text(temporary / "a.txt", "alpha")
        (temporary / "sub").mkdir()
        atomic.write_json(temporary / "sub" / "b.json", {"b": 1})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_failing_operation_leaves_old_or_new_and_no_rubbish(tmp_path: Path, code: int) -> None:
    write_pair(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        counter = FailingOs(None).install(monkeypatch)
        write_pair(tmp_path)
    assert counter.calls > 15
    for n in range(1, counter.calls + 1):
        with pytest.MonkeyPatch.context() as monkeypatch:
            failing = FailingOs(n, code).install(monkeypatch)
            with pytest.raises(RunError, match=r"cannot write .*") as caught:
                write_pair(tmp_path)
            assert failing.calls >= n
        assert os.strerror(code) in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["made"], n
        assert verify_directory(tmp_path / "made") == ["a.txt", "sub/b.json"]


def test_message_names_path_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match=r"x\.bin: No space left on device\. 1,234 bytes are needed; [\d,]+ are free"):
        atomic.write_bytes(tmp_path / "x.bin", b"\0" * 1234)
    assert not list(tmp_path.iterdir())


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data)[:7]))
    atomic.write_bytes(tmp_path / "x", bytes(range(100)))
    assert (tmp_path / "x").read_bytes() == bytes(range(100))


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic.committed_directory(tmp_path / "d") as temporary:
        (temporary / "x").write_text("x")
        raise KeyError("x")
    assert not list(tmp_path.iterdir())


def test_an_existing_directory_is_refused_unless_replaced(tmp_path: Path) -> None:
    write_pair(tmp_path)
    with pytest.raises(RunError, match="already exists"), atomic.committed_directory(tmp_path / "made"):
        pass
    with atomic.committed_directory(tmp_path / "made", replace=True) as temporary:
        atomic.write_text(temporary / "c.txt", "c")
    assert verify_directory(tmp_path / "made") == ["c.txt"]


def test_a_directory_that_was_made_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="made while"), atomic.committed_directory(tmp_path / "d"):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "mine").touch()
    assert (tmp_path / "d" / "mine").exists() and [p.name for p in tmp_path.iterdir()] == ["d"]


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        atomic.make_directory(tmp_path / "file" / "below")


def test_temporaries_are_removed_and_nothing_else(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / ".hidden", "stays")
    (tmp_path / ".step.tmp-0123456789ab").mkdir()
    (tmp_path / ".step.tmp-0123456789ab" / "x").write_text("x")
    (tmp_path / ".f.old-0123456789ab").write_text("x")
    assert len(atomic.remove_temporaries(tmp_path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == [".hidden"]


def test_append_and_truncate(tmp_path: Path) -> None:
    log = tmp_path / "log"
    atomic.append_text(log, "one\n")
    atomic.append_text(log, "two\n")
    assert atomic.sync_file(log) == 8
    atomic.truncate(log, 4)
    assert log.read_text() == "one\n"
    with pytest.raises(RunError, match="4 bytes but 8 were recorded"):
        atomic.truncate(log, 8)
    assert atomic.sync_file(tmp_path / "none") == 0


def test_long_and_unicode_names(tmp_path: Path) -> None:
    name = "ß é 漢" * 20
    atomic.write_text(tmp_path / name, "x")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_removed_directory_is_gone(tmp_path: Path) -> None:
    write_pair(tmp_path)
    atomic.remove_directory(tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_content_is_durable_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    class Recording(FailingOs):
        def _counted(self, original: Callable) -> Callable:
            return lambda *args, **kwargs: called.append(original.__name__) or original(*args, **kwargs)

    Recording(None).install(monkeypatch)
    atomic.write_bytes(tmp_path / "x", b"content")
    assert called == ["open", "write", "fsync", "replace", "open", "fsync"]
