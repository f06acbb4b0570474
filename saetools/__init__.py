"""saetools: train, evaluate and explore sparse dictionaries of transformer activations."""

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "saetools.formats.load",
    "save_as": "saetools.formats.load",
    "push": "saetools.formats.hub",
    "available_dictionaries": "saetools.dictionaries.base",
    "explore": "saetools.exploring",
}
"""Public names and the modules that hold them, imported at first use: `import saetools` alone must stay light."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
