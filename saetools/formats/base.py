"""What a format of saved dictionaries offers, and the registry. Adding a format is adding one file beside this one."""

import importlib
import pkgutil
from pathlib import Path
from typing import ClassVar

import torch

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError

_REGISTRY: dict[str, type["Format"]] = {}


class Format:
    """A layout of files that holds a dictionary. Recognised by content, never by name alone."""

    name: ClassVar[str]
    layout: ClassVar[str]  # what it consists of, for the error on an unknown layout

    def __init_subclass__(cls, name: str, layout: str) -> None:
        if name in _REGISTRY:
            raise ValueError(f"the format {name!r} is already taken by {_REGISTRY[name].__qualname__}")
        _REGISTRY[name] = cls
        cls.name, cls.layout = name, layout

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether what lies at an existing path is of this layout, judged without loading weights."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path, device: str | torch.device, dtype: torch.dtype | None) -> Dictionary:
        """The dictionary for raw activations. Raises FormatError."""
        raise NotImplementedError


def formats() -> list[type[Format]]:
    """All formats, in alphabetical order."""
    import saetools.formats as room

    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


def format_of(path: Path) -> type[Format]:
    """The one format that recognises the path; FormatError lists what lies there and what is known."""
    if not path.exists():
        raise FormatError(f"{path} does not exist. Give the directory of a dictionary or of a run.")
    matching = [candidate for candidate in formats() if candidate.recognises(path)]
    if len(matching) == 1:
        return matching[0]
    reason = f"fits {', '.join(f.name for f in matching)}" if matching else "is of no known layout"
    known = "; ".join(f"{f.name}: {f.layout}" for f in formats())
    raise FormatError(f"{path} {reason}. Found: {found_at(path)}. Known layouts: {known}.")


def found_at(path: Path, most: int = 20) -> str:
    """What lies at a path, in words."""
    if not path.is_dir():
        return f"a file of {path.stat().st_size:,} bytes"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "an empty directory"
