"""Every read of bytes that we did not just make ourselves: sizes are checked before allocation, nothing is executed.

Whatever is missing, damaged or of another layout raises FormatError naming the file; no pickle is ever read.
"""

import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from saetools.atomic import MANIFEST, hash_file
from saetools.errors import ConfigError, FormatError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

JSON_BYTES = 64 << 20
YAML_BYTES = 1 << 20
HEADER_BYTES = 100 << 20  # of a safetensors file, as in its reference implementation
NPZ_RATIO = 20  # arrays of weights hardly compress; what unpacks to more is refused before it is read


def expanded(path: Path | str) -> Path:
    """The path with a leading `~` as the home directory: shells leave one as it is in YAML and after `--option=`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no such home directory. Write the path in full.") from error


def read_json(path: Path | str, max_bytes: int = JSON_BYTES) -> Any:
    """The value in a JSON file of at most max_bytes."""
    path = Path(path)
    with format_errors(path):
        size = path.stat().st_size
        if size > max_bytes:
            raise FormatError(f"{path} has {size:,} bytes; a JSON file here has at most {max_bytes:,}.")
        return json.loads(path.read_bytes().decode("utf-8-sig"))  # some editors begin a file with a mark


def read_yaml(path: Path | str, max_bytes: int = YAML_BYTES) -> Any:
    """The value in a YAML file of at most max_bytes, of plain types; aliases, which can unfold far, are refused."""
    import yaml

    path = Path(path)
    with format_errors(path):
        size = path.stat().st_size
        if size > max_bytes:
            raise FormatError(f"{path} has {size:,} bytes; a YAML file here has at most {max_bytes:,}.")
        text = path.read_bytes().decode()
        try:
            if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
                raise FormatError(f"{path} has aliases (*name), which are not read.")
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise FormatError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error


def load_safetensors(path: Path | str) -> "dict[str, Tensor]":
    """All tensors of a safetensors file, on the CPU, in memory of their own (the file may change afterwards)."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    with format_errors(path):
        _check_safetensors_header(path)
        try:
            return load(path.read_bytes())
        except (SafetensorError, RuntimeError, AttributeError, TypeError) as error:
            raise FormatError(f"{path} is not a valid safetensors file: {error}") from error


def safetensors_shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file; no weights are read."""
    path = Path(path)
    with format_errors(path):
        header = _check_safetensors_header(path)
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


class NpyHeader(NamedTuple):
    """What a .npy file declares."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: "np.dtype[Any]"
    offset: int  # of the data


def npy_header(path: Path | str) -> NpyHeader:
    """The header of a .npy file, after checking that the file has the data that it declares; none are read."""
    path = Path(path)
    with format_errors(path), path.open("rb") as file:
        return _checked_header(file, path.stat().st_size, str(path))


def load_npz(path: Path | str) -> "dict[str, np.ndarray]":
    """The arrays in a .npz file by name; arrays of Python objects are refused, and files that unpack to far more."""
    path = Path(path)
    with format_errors(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        declared, present = sum(member.file_size for member in members), path.stat().st_size
        if declared > NPZ_RATIO * present:
            raise FormatError(f"{path} has {present:,} bytes and declares {declared:,}: no array compresses like that.")
        arrays = {}
        for member in members:
            with archive.open(member) as file:
                arrays[member.filename.removesuffix(".npy")] = _read_npy(
                    io.BytesIO(file.read()), member.file_size, f"{path}: {member.filename}"
                )
        return arrays


def npz_shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a .npz file; no data are read."""
    path = Path(path)
    shapes = {}
    with format_errors(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                shapes[member.filename.removesuffix(".npy")] = _npy_header(file, str(path)).shape
        return shapes


def _read_npy(file: IO[bytes], size: int, name: str) -> "np.ndarray":
    """The array of an open .npy file of `size` bytes."""
    import numpy as np

    _checked_header(file, size, name)
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _checked_header(file: IO[bytes], size: int, name: str) -> NpyHeader:
    """The header of an open .npy file of `size` bytes; FormatError where these are not the numbers that it declares."""
    header = _npy_header(file, name)
    if header.dtype.hasobject:
        raise FormatError(f"{name} holds Python objects; only arrays of numbers are read.")
    declared, present = math.prod(header.shape) * header.dtype.itemsize, size - header.offset
    if declared != present:
        raise FormatError(f"{name} declares {declared:,} bytes of data but has {present:,}: truncated or damaged.")
    return header


def _npy_header(file: IO[bytes], name: str) -> NpyHeader:
    import numpy as np

    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise FormatError(f"{name} is a .npy file of version {version}; versions (1, 0) and (2, 0) are read.")
    return NpyHeader(*readers[version](file), file.tell())


def verify_directory(path: Path | str, allow_extra: Collection[str] = ()) -> list[str]:
    """Check a committed directory against its manifest: every file there, of right size and hash, and no other.

    Returns the names of its files. `allow_extra` names files or sub-directories that may be there besides.
    Raises FormatError naming the bad file.
    """
    path = Path(path)
    if not path.is_dir():
        raise FormatError(f"{path} is not a directory.")
    entries = _manifest_entries(path / MANIFEST)
    for name, entry in entries.items():
        _verify_file(path, name, entry)
    for file in sorted(p for p in path.rglob("*") if not p.is_dir()):
        name = file.relative_to(path).as_posix()
        if name not in entries and name != MANIFEST and name.split("/")[0] not in allow_extra:
            raise FormatError(f"{file} is not in {path / MANIFEST}: it does not belong to this directory.")
    return list(entries)


def damage(path: Path | str) -> str | None:
    """What `verify_directory` finds wrong with a committed directory; None where nothing is."""
    try:
        verify_directory(path)
    except FormatError as error:
        return str(error)
    return None


def _manifest_entries(path: Path) -> dict[str, dict[str, Any]]:
    value = read_json(path)
    entries = value.get("files") if isinstance(value, dict) else None
    if not isinstance(entries, dict) or value.get("version") != 1:
        raise FormatError(f"{path} is not a manifest of version 1; it was made by another version or is damaged.")
    for name, entry in entries.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in name or "\\" in name:
            raise FormatError(f"{path} names the file {name!r}, which is outside its directory.")
        if not (
            isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("xxh3_128"), str)
        ):
            raise FormatError(f"{path} has no size and hash of {name!r}.")
    return entries


def _verify_file(directory: Path, name: str, entry: dict[str, Any]) -> None:
    file = directory / name
    with format_errors(file):
        if not file.is_file() or not _stays_inside(file, directory):
            raise FormatError(f"{file} is missing or not a plain file, but {directory / MANIFEST} lists it.")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise FormatError(f"{file} has {size:,} bytes; {entry['bytes']:,} were written: truncated or replaced.")
        if hash_file(file) != entry["xxh3_128"]:
            raise FormatError(f"{file} does not have the content that was written (its xxh3-128 differs): damaged.")


def _stays_inside(file: Path, directory: Path) -> bool:
    """Whether a file is no link, or one into its directory or into the blobs of the hub's cache that it lies in."""
    if not file.is_symlink():
        return True
    caches = [above.parent for above in directory.absolute().parents if above.name == "snapshots"]
    allowed = [directory.resolve(), *((cache / "blobs").resolve() for cache in caches)]
    return any(file.resolve().is_relative_to(place) for place in allowed)


def _check_safetensors_header(path: Path) -> dict[str, Any]:
    """The parsed header, after checking that sizes fit the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(HEADER_BYTES, size - 8):
            raise FormatError(f"{path} is not a safetensors file: it has {size:,} bytes and no valid header.")
        header = json.loads(file.read(length).decode())
    if not isinstance(header, dict):
        raise FormatError(f"{path} is not a safetensors file: its header is not a mapping.")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if not all(isinstance(end, int) for end in ends) or max(ends, default=0) != size - 8 - length:
        raise FormatError(
            f"{path} declares other bytes of data than the {size - 8 - length:,} it has: truncated or damaged."
        )
    return header


DAMAGE = (
    *(ValueError, KeyError, IndexError, TypeError, RecursionError, EOFError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, RuntimeError, struct.error),
    *(SyntaxError, tokenize.TokenError),  # of numpy, which reads a header as Python's literals
)
"""What parsers raise on bytes that are not what they should be."""


@contextmanager
def format_errors(path: Path) -> Iterator[None]:
    """Turn what reading and parsing raise into FormatError; what is no plain file (a pipe, a device) is not opened."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FormatError(f"{path} is not a plain file.")
    try:
        yield
    except FormatError:
        raise
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist.") from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}.") from error
    except DAMAGE as error:
        raise FormatError(f"{path} is damaged or of another layout: {' '.join(str(error).split())[:200]}") from error
