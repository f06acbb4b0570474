"""Pickles are named and not opened."""

import pickle
from pathlib import Path

import pytest

import saetools
from saetools.errors import FormatError


class Trap:
    """Leaves a trace when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ("file", "layout"),
    [
        ("ae.pt", "dictionary_learning"),
        ("atoms.pt", "ITDA"),
        ("layer3.sae.pt", "Qwen Scope"),
        ("7.pt", "OpenAI"),
    ],
)
def test_layouts_are_named_and_nothing_runs(tmp_path: Path, file: str, layout: str) -> None:
    source, trace = tmp_path / "source", tmp_path / "trace"
    (source / "checkpoints").mkdir(parents=True)  # as dictionary_learning leaves; it is no run of ours
    (source / "checkpoints" / "ae_100.pt").write_bytes(b"")
    (source / file).write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(FormatError, match=f"{layout}.*not opened"):
        saetools.load(source / file)
    if layout != "OpenAI":  # whose directories say nothing
        with pytest.raises(FormatError, match=f"layout of {layout}"):
            saetools.load(source)
    assert not trace.exists()
    pickle.loads((source / file).read_bytes())
    assert trace.exists()  # the trap is one
