"""A run directory: its final dictionary or, while it is unfinished, that of its newest valid checkpoint."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError
from saetools.formats.base import Format, Reading
from saetools.formats.native import load_dictionary

DICTIONARY, CHECKPOINTS = "dictionary", "checkpoints"
BEGUN = ("config.yaml", "run.json")
"""What a run has before its first checkpoint."""

Read = TypeVar("Read")

log = logging.getLogger(__name__)


class RunFormat(Format, name="run", layout=f"{DICTIONARY}/, or {CHECKPOINTS}/<step>/{DICTIONARY}/"):
    """What `saetools train` leaves, and each of its checkpoints."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if (path / DICTIONARY).is_dir() or all((path / name).is_file() for name in BEGUN):
            return True
        checkpoints = path / CHECKPOINTS  # other libraries' directories of this name hold files of weights
        return checkpoints.is_dir() and not any(f.suffix in (".safetensors", ".pt") for f in checkpoints.iterdir())

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        return read_newest(path, lambda directory: load_dictionary(directory, how.device, how.dtype))


def read_newest(run: Path, read: Callable[[Path], Read]) -> Read:
    """What `read` gives of the final dictionary's directory or, while there is none, of the newest valid checkpoint's.

    Checkpoints that `read` refuses by a FormatError are skipped with a warning; FormatError where none is left.
    """
    if (run / DICTIONARY).is_dir():
        return read(run / DICTIONARY)
    skipped = []
    for directory in checkpoint_directories(run):
        try:
            return read(directory / DICTIONARY)
        except FormatError as error:
            log.warning("skipped the checkpoint %s: %s", directory.name, error)
            skipped.append(f"{directory.name}: {error}")
    raise FormatError(
        f"{run} has no final {DICTIONARY}/ and no valid checkpoint. Skipped: {'; '.join(skipped) or 'none there'}. "
        f"`saetools train {run}` begins it, or goes on with it."
    )


def checkpoint_directories(run: Path) -> list[Path]:
    """The directories checkpoints/<step>, newest first; other names are no checkpoints."""
    if not (run / CHECKPOINTS).is_dir():
        return []
    found = [entry for entry in (run / CHECKPOINTS).iterdir() if entry.is_dir() and entry.name.isdecimal()]
    return sorted(found, key=lambda entry: int(entry.name), reverse=True)
