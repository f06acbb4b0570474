"""Every write to disk: a file or directory appears whole, or not at all.

Write order: temporary sibling -> fsync -> rename -> fsync of the parent directory. A process killed at any instant
leaves the old content or the new one, and perhaps a temporary sibling, which `remove_temporaries` clears away.
Every operating-system failure becomes a RunError that names the path, what was needed and what is free.
"""

# os calls on purpose: the tests make each of them fail
# ruff: noqa: PTH102, PTH104, PTH105

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from saetools.errors import RunError

MANIFEST = "manifest.json"
"""The file, written last, that lists size and xxh3-128 of every other file of a committed directory."""

BLOCK_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\..*\.(tmp|old)-[0-9a-f]{12}")


def write_bytes(path: Path | str, data: bytes | memoryview) -> None:
    """Create or replace a file. Raises RunError; the old content, if any, is then still there."""
    path = Path(path)
    temporary = _temporary_sibling(path)
    try:
        _write_new(temporary, memoryview(data))
        os.replace(temporary, path)
        _fsync_directory(path.parent)
    except OSError as error:
        raise _explained(error, path, len(data)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """`write_text` of indented JSON with keys in the order given."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_tensors(path: Path | str, tensors: Mapping[str, Any]) -> None:
    """`write_bytes` of a safetensors file; tensors are torch tensors on any device, of any strides."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain))


def append_text(path: Path | str, text: str) -> None:
    """Add UTF-8 text at the end of a file (made where missing) in one write, without fsync: for logs.

    A killed process may leave a part of the last text; `truncate` to a known length repairs it.
    """
    path, data = Path(path), text.encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _write_all(handle, memoryview(data))
        finally:
            os.close(handle)
    except OSError as error:
        raise _explained(error, path, len(data)) from error


def truncate(path: Path | str, n_bytes: int) -> None:
    """Cut a file to its first n_bytes and make that durable; a shorter file is an error."""
    path = Path(path)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            present = os.fstat(handle).st_size
            if present < n_bytes:
                raise RunError(f"{path} has {present} bytes but {n_bytes} were recorded; it was cut or replaced.")
            os.ftruncate(handle, n_bytes)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise _explained(error, path) from error


def sync_file(path: Path | str) -> int:
    """Make the content of a file durable; its size in bytes, 0 where it does not exist."""
    path = Path(path)
    if not path.exists():
        return 0
    try:
        _fsync(path)
        return path.stat().st_size
    except OSError as error:
        raise _explained(error, path) from error


def make_directory(path: Path | str) -> Path:
    """The directory, made with its parents where missing. Raises RunError where it cannot be made or written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _explained(error, path) from error
    return path


def remove_directory(path: Path | str) -> None:
    """Delete a directory such that no half of it is ever seen under its name: renamed first, then deleted."""
    path = Path(path)
    doomed = _temporary_sibling(path, "old")
    try:
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise _explained(error, path) from error


@contextmanager
def committed_directory(path: Path | str, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary directory that becomes `path`, with a manifest, when the block ends without error.

    Raises RunError where `path` exists and `replace` is False, and where writing fails; then nothing of the new
    directory is left and an old one is untouched. With `replace`, a kill between two renames can leave neither
    name: the new directory is then complete in its temporary sibling.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise RunError(f"{path} already exists. Remove it or choose another directory.")
    make_directory(path.parent)
    temporary = _temporary_sibling(path)
    try:
        os.mkdir(temporary)
        yield temporary
        write_manifest(temporary)
        _exchange(temporary, path, replace)
        _fsync_directory(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(directory: Path) -> None:
    """Make every file of a directory durable and list size and xxh3-128 of each in `manifest.json`."""
    entries = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = file.relative_to(directory).as_posix()
        if name == MANIFEST:
            continue
        entries[name] = {"bytes": file.stat().st_size, "xxh3_128": hash_file(file)}
        _fsync(file)
    write_json(directory / MANIFEST, {"version": 1, "files": entries})
    for folder in sorted(p for p in directory.rglob("*") if p.is_dir()):
        _fsync_directory(folder)
    _fsync_directory(directory)


def hash_file(path: Path) -> str:
    """xxh3-128 of the content, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def remove_temporaries(directory: Path) -> list[str]:
    """Delete what killed writers left in a directory; the names deleted. Call only where no other writer can be."""
    left = [entry for entry in sorted(directory.iterdir()) if _TEMPORARY.fullmatch(entry.name)]
    for entry in left:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return [entry.name for entry in left]


def _temporary_sibling(path: Path, role: str = "tmp") -> Path:
    """A name beside `path` that nobody has; short enough for any file system whatever the length of the name."""
    return path.parent / f".{path.name[:40]}.{role}-{secrets.token_hex(6)}"


def _write_new(path: Path, data: memoryview) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write_all(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, data: memoryview) -> None:
    """All of the data, however short each write is."""
    data = data.cast("B")
    while len(data):
        written = os.write(handle, data[: 64 * BLOCK_BYTES])
        if written <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[written:]


def _exchange(temporary: Path, path: Path, replace: bool) -> None:
    """Rename temporary to path; an old path is put aside first and deleted after, or put back on failure.

    Not `replace`, RunError where somebody has made the path since it was looked for.
    """
    if not path.exists():
        os.rename(temporary, path)
        return
    if not replace:
        raise RunError(f"{path} was made while its content was computed. Remove it or choose another directory.")
    old = _temporary_sibling(path, "old")
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_directory(path: Path) -> None:
    if os.name == "posix":  # elsewhere a directory cannot be opened
        _fsync(path)


def _explained(error: OSError, path: Path, needed: int | None = None) -> RunError:
    """The failure as one paragraph for the user."""
    reason = error.strerror or str(error)
    message = f"cannot write {path}: {reason}."
    if needed is not None:
        message += f" {needed:,} bytes are needed"
        try:
            message += f"; {shutil.disk_usage(path.parent).free:,} are free."
        except OSError:
            message += "."
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return RunError(
        message + (" Free some space" if full else " Check the directory and its permissions") + " and repeat."
    )
