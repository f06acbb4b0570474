"""One way to load a dictionary, wherever it came from, and to write it for another library."""

from pathlib import Path

import torch

from saetools.dictionaries.base import Dictionary
from saetools.formats.base import Format, Reading, format_named, format_of, formats
from saetools.safeio import expanded

HUB = "hf://"


def load(
    source: Path | str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    strict: bool = True,
    allow_pt: bool = False,
    k: int | None = None,
) -> Dictionary:
    """The dictionary at `source`, for raw activations, ready for encode, decode and calling.

    `source`: the directory of a dictionary, or of a run (its final dictionary, else that of its newest valid
    checkpoint), or a directory or file of another library's layout (`saetools.formats.base.formats()` lists them), or
    `hf://org/repository[/directory][@revision]`. `dtype` None keeps that of the saved weights; foreign weights in half
    precision are widened to float32, so that folding biases loses nothing. With `strict` False, unknown settings and
    tensors of another library's file are passed over with a warning. A layout whose weights are a pickle (.pt) is
    opened only with `allow_pt`, in a sandbox that takes tensors alone. `k`: features per row, for layouts whose files
    do not say. Raises FormatError, listing what was found where the layout is unknown, and naming file and key where
    something is damaged or cannot be represented.

    >>> import tempfile
    >>> from saetools.dictionaries.base import make_dictionary
    >>> from saetools.dictionaries.topk import TopK
    >>> made, directory = make_dictionary(TopK.configure(n_features=8, k=2), d_model=4), tempfile.mkdtemp() + "/d"
    >>> save_as(made, directory, "saelens")
    >>> load(directory).encode(torch.ones(3, 4)).n_features
    8
    """
    how = Reading(device, dtype, strict, allow_pt, k)
    if str(source).startswith(HUB):
        from saetools.formats.hub import fetched

        dictionary = load_path(fetched(str(source), allow_pt), how)
        dictionary.provenance = {**dictionary.provenance, "source": str(source)}
        return dictionary
    return load_path(expanded(source), how)


def load_path(path: Path, how: Reading) -> Dictionary:
    """The dictionary in a local directory or file; a file of a layout of several files stands for its directory."""
    layout, path = layout_at(path)
    return layout.read(path, how)


def layout_at(path: Path) -> tuple[type[Format], Path]:
    """The format of what lies at a path, and the path to read: the directory that a file stands for."""
    for directory in path.absolute().parents[:2] if path.is_file() else ():
        for candidate in formats():
            if path.absolute().relative_to(directory).as_posix() in candidate.files and candidate.recognises(directory):
                return candidate, directory
    return format_of(path), path


def save_as(dictionary: Dictionary, path: Path | str, format: str) -> None:
    """Write a dictionary for another library ("SAELens", "sparsify", "dictionary_learning") or as ours ("saetools").

    Atomic. Raises MismatchError for what that library cannot compute, naming what it can; RunError where `path`
    exists or cannot be written.
    """
    format_named(format).write(dictionary, expanded(path))
