"""A run directory: its final dictionary or, while it is unfinished, that of its newest valid checkpoint."""

import logging
from pathlib import Path

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError
from saetools.formats.base import Format, Reading
from saetools.formats.native import load_dictionary

DICTIONARY, CHECKPOINTS = "dictionary", "checkpoints"

log = logging.getLogger(__name__)


class RunFormat(Format, name="run", layout=f"{DICTIONARY}/, or {CHECKPOINTS}/<step>/{DICTIONARY}/"):
    """What `saetools train` leaves, and each of its checkpoints."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if (path / DICTIONARY).is_dir():
            return True
        checkpoints = path / CHECKPOINTS  # other libraries' directories of this name hold files of weights
        return checkpoints.is_dir() and not any(f.suffix in (".safetensors", ".pt") for f in checkpoints.iterdir())

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        if (path / DICTIONARY).is_dir():
            return load_dictionary(path / DICTIONARY, how.device, how.dtype)
        skipped = []
        for directory in checkpoint_directories(path):
            try:
                return load_dictionary(directory / DICTIONARY, how.device, how.dtype)
            except FormatError as error:
                log.warning("skipped the checkpoint %s: %s", directory.name, error)
                skipped.append(f"{directory.name}: {error}")
        raise FormatError(
            f"{path} has no final {DICTIONARY}/ and no valid checkpoint. Skipped: {'; '.join(skipped) or 'none there'}"
        )


def checkpoint_directories(run: Path) -> list[Path]:
    """The directories checkpoints/<step>, newest first; other names are no checkpoints."""
    found = [entry for entry in (run / CHECKPOINTS).iterdir() if entry.is_dir() and entry.name.isdecimal()]
    return sorted(found, key=lambda entry: int(entry.name), reverse=True)
