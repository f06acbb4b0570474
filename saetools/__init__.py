"""saetools: train, evaluate and explore sparse dictionaries of transformer activations.

    import saetools
    dictionary = saetools.load("runs/mine")  # or another library's directory, or hf://...
    saetools.explore("runs/mine").feature(123)

Public names: `saetools.formats.load.load`, `saetools.formats.load.save_as`, `saetools.formats.hub.push`,
`saetools.dictionaries.base.available_dictionaries` and `saetools.exploring.explore`, all also as `saetools.NAME`.
`load` returns a `saetools.dictionaries.base.Dictionary`, and that encodes to a `saetools.dictionaries.code.SparseCode`.

The jobs of the command line are the functions of `saetools.pipeline`, `saetools.exploring` and `saetools.encoding`.
Below them: `saetools.dictionaries`, one file per kind; `saetools.training`; `saetools.evals`, one file per evaluation;
`saetools.features`, what each feature does, and steering (`saetools.features.steering.steer`); `saetools.dashboard`;
`saetools.formats`, one file per layout; `saetools.activations`, `saetools.lm` and `saetools.text`, from text to rows;
`saetools.functional`, one function per formula; `saetools.kernels`, the fast paths with a plain one beside each.
"""

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
