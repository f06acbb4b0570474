"""Checkpoints that other libraries' own code wrote and ran (`scripts/make_golden.py`): the same codes from ours."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import saetools
from saetools.dictionaries.base import Dictionary
from saetools.formats.native import save_dictionary

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "golden.json").read_text())["cases"]
OURS = ("expected.safetensors",)


def load(name: str) -> Dictionary:
    case = CASES[name]
    return saetools.load(GOLDEN / name / case.get("source", ""), allow_pt=True, k=case.get("k"))


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert .pt files in this process: starting torch anew for each takes seconds. `test_pt.py` does it for real."""
    from saetools.formats import pt, pt_sandbox

    monkeypatch.setattr(pt, "_run_sandbox", lambda path, out, objects: pt_sandbox.convert(str(path), str(out), objects))


@pytest.mark.parametrize("name", CASES)
def test_codes_and_reconstructions(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_process(monkeypatch)
    case, expected = CASES[name], load_file(GOLDEN / name / "expected.safetensors")
    dictionary = load(name)
    assert dictionary.W_dec_FD.dtype == torch.float32
    with torch.no_grad():
        code = dictionary.encode(expected["x"]).to_dense() * case.get("code_scale", 1.0)
        recon = dictionary(expected["x"])
    assert torch.equal(code != 0, expected["code"] != 0)
    assert (code - expected["code"]).abs().max() <= 1e-6 * expected["code"].abs().max()
    assert (recon - expected["recon"]).abs().max() <= 1e-6 * expected["recon"].abs().max()

    save_dictionary(dictionary, tmp_path / "d", None, provenance=dictionary.provenance)
    again = saetools.load(tmp_path / "d")
    assert again.provenance == dictionary.provenance
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in dictionary.state_dict().items())
    assert torch.equal(again(expected["x"]), recon)


@pytest.mark.parametrize("name", CASES)
def test_files_are_those_that_the_script_made(name: str) -> None:
    for file, digest in CASES[name]["files"].items():
        assert hashlib.sha256((GOLDEN / name / file).read_bytes()).hexdigest() == digest
    assert {f.relative_to(GOLDEN / name).as_posix() for f in (GOLDEN / name).rglob("*") if f.is_file()} == set(
        CASES[name]["files"]
    )
