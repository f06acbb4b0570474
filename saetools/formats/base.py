"""What a format of saved dictionaries offers, and the registry. Adding a format is adding one file beside this one."""

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from saetools.dictionaries.base import Dictionary
from saetools.errors import ConfigError, FormatError, MismatchError, nearest
from saetools.formats.found import found_at

MOST_LOOKED_INTO, MOST_NAMED = 100, 5
_REGISTRY: dict[str, type["Format"]] = {}


@dataclass(frozen=True)
class Reading:
    """How a dictionary is to be read: what `saetools.load` takes besides the source."""

    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None  # None: that of the file, half precision of other libraries widened to float32
    strict: bool = True  # whether an unknown setting or tensor of another library's file is an error or a warning
    allow_pt: bool = False  # whether a .pt file may be opened, in a sandbox
    k: int | None = None  # features per row, for layouts whose files do not say

    def __post_init__(self) -> None:
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise ConfigError(f"device is {self.device!r}; write cpu, cuda or cuda:N.") from None
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise ConfigError(
                f"dtype is {self.dtype!r}; give one of floating-point numbers, as torch.bfloat16, or None."
            )
        if self.k is not None and (type(self.k) is not int or self.k < 1):
            raise ConfigError(f"k is {self.k!r}; it is a number of features per row.")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device is {self.device}, but torch {torch.__version__} finds no CUDA GPU. Use cpu.")


USUAL = Reading()


class Format:
    """A layout of files that holds a dictionary. Recognised by content, never by name alone."""

    name: ClassVar[str]
    layout: ClassVar[str]  # what it consists of, for the error on an unknown layout
    files: ClassVar[tuple[str, ...]] = ()  # names in its directory: one of them stands for the directory

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
    def read(cls, path: Path, how: Reading) -> Dictionary:
        """The dictionary for raw activations. Raises FormatError."""
        raise NotImplementedError

    @classmethod
    def write(cls, dictionary: Dictionary, path: Path) -> None:
        """Write a dictionary (for raw rows, as `saetools.load` returns it) in this layout, atomically.

        Raises MismatchError for what the layout cannot say, RunError where `path` exists or cannot be written.
        """
        raise MismatchError(f"{cls.name} is read, not written. {_that_can_be_written()}")


def formats() -> list[type[Format]]:
    """All formats, in alphabetical order."""
    import saetools.formats as room

    for module in pkgutil.iter_modules(room.__path__):
        if module.name != "pt_sandbox":  # a program of its own
            importlib.import_module(f"{room.__name__}.{module.name}")
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


def format_named(name: str) -> type[Format]:
    """The format of this name, letters alone compared ("dictionary_learning", "saelens"); else MismatchError."""
    by_letters = {_letters(candidate.name): candidate for candidate in formats()}
    if _letters(name) not in by_letters:
        raise MismatchError(f"there is no format {name!r}.{nearest(name, _writable())} {_that_can_be_written()}")
    return by_letters[_letters(name)]


def format_of(path: Path) -> type[Format]:
    """The one format that recognises the path; FormatError lists what lies there and what is known."""
    if not path.exists():
        raise FormatError(
            f"{path} does not exist. Give a directory or file of a dictionary, a run, or hf://organisation/repository."
        )
    matching = [candidate for candidate in formats() if candidate.recognises(path)]
    if len(matching) == 1:
        return matching[0]
    reason = f"fits {', '.join(f.name for f in matching)}" if matching else f"is of no known layout{_in_part(path)}"
    known = "; ".join(f"{f.name}: {f.layout}" for f in formats())
    raise FormatError(f"{path} {reason}. Found: {found_at(path)}. Known layouts: {known}.")


def _in_part(path: Path) -> str:
    """What is missing of layouts of which a file of weights is there, as after a download that was cut short.

    Or else what in it can be read: libraries that train several dictionaries write a directory or .pt file for each.
    """
    for candidate in formats():
        there = [name for name in candidate.files if (path / name).exists()]
        missing = [name for name in candidate.files if name not in there]
        if missing and any(name.endswith(".safetensors") for name in there):
            return f" ({', '.join(there)} is of {candidate.name}, but {' and '.join(missing)} is missing)"
    inside = sorted(path.iterdir())[:MOST_LOOKED_INTO] if path.is_dir() else []
    known = [entry for entry in inside if _is_known(entry)]
    if not known:
        return ""
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return f", but what is in it may be: name one of {', '.join(map(str, known[:MOST_NAMED]))}{more}"


def _is_known(path: Path) -> bool:
    try:
        return any(candidate.recognises(path) for candidate in formats())
    except (FormatError, OSError):  # damaged, or not for us to read
        return False


def _writable() -> list[str]:
    return [f.name for f in formats() if f.write.__func__ is not Format.write.__func__]  # type: ignore[attr-defined]


def _that_can_be_written() -> str:
    return f"Formats that can be written: {', '.join(_writable())}."


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
