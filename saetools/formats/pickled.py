"""Layouts whose weights are pickles (.pt): told apart, so that the error names them, and never opened.

Reading a pickle can run what its writer chose. Convert such a file where you trust it, with the library that wrote it.
"""

from pathlib import Path

import torch

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError
from saetools.formats.base import Format

SUFFIXES = (".pt", ".pth")


class PickledFormat(Format, name="pickles", layout="a .pt or .pth file, recognised but never opened"):
    """dictionary_learning, ITDA, Qwen Scope, OpenAI and Goodfire: known by the names of their files alone."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix in SUFFIXES if path.is_file() else _layout(path) is not None

    @classmethod
    def read(cls, path: Path, device: str | torch.device, dtype: torch.dtype | None) -> Dictionary:
        layout = _layout(path) or "a PyTorch file (as OpenAI and Goodfire publish)"
        raise FormatError(
            f"{path} is of the layout of {layout}, whose weights are in a pickle (.pt). Pickles can run code and are "
            "not opened. Convert it with the library that wrote it, e.g. by SAELens into cfg.json and "
            "sae_weights.safetensors, and load that."
        )


def _layout(path: Path) -> str | None:
    """The library that names its files like this."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
    if "ae.pt" in names or any(name.startswith("ae_") and name.endswith(".pt") for name in names):
        return "dictionary_learning"
    if "atoms.pt" in names:
        return "ITDA"
    if any(name.endswith(".sae.pt") for name in names):
        return "Qwen Scope"
    return None
