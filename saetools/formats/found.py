"""What lies at a path, in words: files, and the names and shapes of the tensors in them, without reading weights."""

from pathlib import Path

from saetools.errors import FormatError
from saetools.formats.pt import PT_SUFFIXES, pt_names
from saetools.safeio import npz_shapes, read_json, safetensors_shapes

MOST = 20
OF_PICKLES = ("storage", "cpu", "cuda", "mps")
"""Texts of every pickle of tensors, beside the numbers of their storages."""


def found_at(path: Path) -> str:
    """The names in a directory, or the tensors (name [shape]) or keys of a file."""
    if path.is_dir():
        names = [entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir()]
        held = [f"{file.name} has {inside}" for file in sorted(path.iterdir()) if (inside := _inside(file))]
        return "; ".join([_first(sorted(names)) or "an empty directory", *held[:5]])
    return f"a file of {path.stat().st_size:,} bytes" + (f" with {inside}" if (inside := _inside(path)) else "")


def _inside(file: Path) -> str:
    """What a file of a known kind holds; an empty text for others and for damaged ones."""
    try:
        if file.suffix == ".safetensors":
            return _first([f"{name} {list(shape)}" for name, shape in safetensors_shapes(file).items()])
        if file.suffix == ".npz":
            return _first([f"{name} {list(shape)}" for name, shape in npz_shapes(file).items()])
        if file.suffix == ".json":
            values = read_json(file)
            return _first(list(values)) if isinstance(values, dict) else ""
        if file.suffix in PT_SUFFIXES:
            texts = sorted(pt_names(file).texts)
            return "the names " + _first([t for t in texts if not t.isdecimal() and not t.startswith(OF_PICKLES)])
    except FormatError as error:
        return f"damaged content ({str(error)[:80]})"
    return ""


def _first(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(str(name)[:60] for name in names[:MOST]) + more
