"""One way to load a dictionary, wherever it came from."""

from pathlib import Path

import torch

from saetools.dictionaries.base import Dictionary
from saetools.formats.base import format_of


def load(source: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Dictionary:
    """The dictionary at `source`, for raw activations, ready for encode, decode and calling.

    `source`: the directory of a dictionary, or of a run (its final dictionary, else that of its newest valid
    checkpoint), or of a layout of another library (`saetools.formats.base.formats()` lists them). `dtype` None keeps
    that of the saved weights; foreign weights in half precision are widened to float32, so that folding biases loses
    nothing. Raises FormatError, listing what was found where the layout is unknown, and naming file and key where
    something is damaged or cannot be represented.
    """
    path = Path(source)
    return format_of(path).read(path, device, dtype)
