"""Our own format: round trips, and damage of every sort gives FormatError naming the file, never a crash."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saetools.atomic import write_manifest, write_tensors
from saetools.dictionaries.base import Dictionary, make_dictionary
from saetools.dictionaries.topk import TopK
from saetools.errors import FormatError, MismatchError, RunError
from saetools.formats.native import load_dictionary, load_unfolded, save_dictionary
from saetools.records import Calibration, PointSpec
from saetools.safeio import load_safetensors

SPEC = PointSpec(host="pycode", point="blocks.2.hook_out", d_model=6)
CALIBRATION = Calibration(scale=0.25, total_variance=5.0, median_norm=9.0, b_dec_start=(0.5,) * 6, n_rows=100)


def fresh() -> Dictionary:
    dictionary = make_dictionary(TopK.configure(n_features=10, k=3), 6, seed=7)
    dictionary.calibrate_(CALIBRATION)
    return dictionary


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_dictionary(fresh(), tmp_path / "d", SPEC, CALIBRATION, {"n_tokens": 5})
    return tmp_path / "d"


def test_record_and_weights_come_back(saved: Path) -> None:
    dictionary, record = load_unfolded(saved)
    assert (record.spec, record.calibration, record.scale, record.seed) == (SPEC, CALIBRATION, 0.25, 7)
    assert (dictionary.spec, dictionary.calibration) == (SPEC, CALIBRATION)
    assert dictionary.provenance == {"n_tokens": 5}
    for name, tensor in fresh().state_dict().items():
        assert torch.equal(dictionary.state_dict()[name], tensor)
    assert all(p.requires_grad for p in dictionary.parameters())
    assert "blocks.2.hook_out" in dictionary._repr_html_() and "trained: n_tokens" in dictionary._repr_html_()


def test_loaded_is_folded_for_raw_rows(saved: Path) -> None:
    raw = torch.randn(20, 6) * 4
    folded, unfolded = load_dictionary(saved), fresh()
    torch.testing.assert_close(folded(raw), unfolded(raw * 0.25) * 4, rtol=1e-5, atol=1e-5)
    assert folded.total_variance.item() == 5.0 * 16


def test_dtype_and_device(tmp_path: Path) -> None:
    every = make_dictionary(TopK.configure(n_features=10, k=10), 6, seed=7)  # one of fewer may choose others in bf16
    every.calibrate_(CALIBRATION)
    save_dictionary(every, tmp_path / "d", SPEC, CALIBRATION)
    half = load_dictionary(tmp_path / "d", device="cpu", dtype=torch.bfloat16)
    assert half.W_dec_FD.dtype == torch.bfloat16 and half.total_variance.dtype == torch.float64
    x = torch.randn(5, 6) * 4
    assert half(x).dtype == torch.float32
    torch.testing.assert_close(half(x), load_dictionary(tmp_path / "d")(x), rtol=0, atol=0.15)


def test_what_exists_is_not_overwritten(saved: Path) -> None:
    with pytest.raises(RunError, match="already exists"):
        save_dictionary(fresh(), saved, SPEC, CALIBRATION)
    save_dictionary(fresh(), saved, SPEC, CALIBRATION, {"n_tokens": 6}, replace=True)
    assert load_dictionary(saved).provenance == {"n_tokens": 6}


def test_parts_of_different_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="the point has 7"):
        save_dictionary(fresh(), tmp_path / "d", SPEC.model_copy(update={"d_model": 7}))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "manifest.json"])
@pytest.mark.parametrize("seed", range(20))
def test_flipped_and_lost_bytes(saved: Path, file: str, seed: int) -> None:
    """Of the manifest some bytes say nothing (white space): what still loads is then the same, bit for bit."""
    draw = random.Random(f"{file}{seed}")
    content = bytearray((saved / file).read_bytes())
    place = draw.randrange(len(content))
    if seed % 4 == 0:
        content = content[:place]
    elif seed % 4 == 1:
        content.insert(place, draw.randrange(256))
    else:
        content[place] ^= 1 << draw.randrange(8)
    (saved / file).write_bytes(content)
    try:
        dictionary, record = load_unfolded(saved)
    except FormatError as error:
        assert str(saved) in str(error)
    else:
        assert file == "manifest.json" and record.scale == 0.25
        assert all(torch.equal(dictionary.state_dict()[name], t) for name, t in fresh().state_dict().items())


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "manifest.json"])
def test_missing_files(saved: Path, file: str) -> None:
    (saved / file).unlink()
    with pytest.raises(FormatError, match=file):
        load_unfolded(saved)


def edit_config(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json and make the manifest fit again: another program's writing, not damage."""
    values = json.loads((saved / "config.json").read_text())
    change(values)
    (saved / "config.json").write_text(json.dumps(values))
    write_manifest(saved)


CONFIG_EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer schema": (lambda v: v.update(schema_version=2), "Update saetools"),
    "no schema": (lambda v: v.pop("schema_version"), "schema_version"),
    "odd schema": (lambda v: v.update(schema_version="one"), "schema_version"),
    "no width": (lambda v: v.pop("d_model"), "d_model"),
    "other width": (lambda v: v.update(d_model=7), "W_dec_FD has shape"),
    "huge width": (lambda v: v.update(d_model=10**12), "W_dec_FD has shape"),
    "huge dictionary": (lambda v: v["dictionary"].update(n_features=10**15), "W_dec_FD has shape"),
    "negative width": (lambda v: v.update(d_model=-6), "d_model"),
    "unknown key": (lambda v: v.update(colour="red"), "colour"),
    "unknown kind": (lambda v: v["dictionary"].update(kind="topq"), 'Did you mean "topk"'),
    "no kind": (lambda v: v["dictionary"].pop("kind"), "unknown dictionary kind"),
    "unknown setting": (lambda v: v["dictionary"].update(kk=3), "dictionary.kk"),
    "missing setting": (lambda v: v["dictionary"].pop("k"), "dictionary.k"),
    "k above F": (lambda v: v["dictionary"].update(k=11), "k = 11"),
    "dictionary is a list": (lambda v: v.update(dictionary=[1]), "dictionary"),
    "zero scale": (lambda v: v.update(scale=0), "scale"),
    "infinite scale": (lambda v: v.update(scale=float("inf")), "scale"),
    "spec without point": (lambda v: v["spec"].pop("point"), "spec.point"),
    "calibration of text": (lambda v: v.update(calibration="none"), "calibration"),
}


@pytest.mark.parametrize("name", CONFIG_EDITS)
def test_edited_config(saved: Path, name: str) -> None:
    change, message = CONFIG_EDITS[name]
    edit_config(saved, change)
    with pytest.raises(FormatError, match=message) as error:
        load_unfolded(saved)
    assert str(saved) in str(error.value)


WEIGHT_EDITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "unknown": (lambda t: t.update(extra=torch.zeros(1)), "unknown key 'extra'"),
    "no decoder": (lambda t: t.pop("W_dec_FD"), "lacks the key 'W_dec_FD'"),
    "no bias": (lambda t: t.pop("b_enc_F"), "lacks the key 'b_enc_F'"),
    "transposed": (lambda t: t.update(W_enc_FD=t["W_enc_FD"].T), "W_enc_FD has shape"),
    "integers": (lambda t: t.update(b_dec_D=t["b_dec_D"].int()), "b_dec_D is torch.int32"),
    "flat": (lambda t: t.update(total_variance=torch.ones(1).double()), "total_variance has shape"),
    "nothing": (lambda t: t.clear(), "lacks the key 'W_dec_FD'"),
}


@pytest.mark.parametrize("name", WEIGHT_EDITS)
def test_edited_weights(saved: Path, name: str) -> None:
    change, message = WEIGHT_EDITS[name]
    tensors = load_safetensors(saved / "model.safetensors")
    change(tensors)
    write_tensors(saved / "model.safetensors", tensors)
    write_manifest(saved)
    with pytest.raises(FormatError, match=message):
        load_unfolded(saved)


def test_a_file_in_place_of_a_directory(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "config.json", tmp_path / "file")
    for path in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(FormatError, match=path.name):
            load_unfolded(path)
