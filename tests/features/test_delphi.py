"""The export against dense codes, read back as delphi reads it."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from toy import SPEC, SignedDictionary, ToyPlan, ToySource

from saetools.dictionaries.code import SparseCode
from saetools.errors import DataError
from saetools.features.delphi import export_delphi


def in_bfloat16(code):
    return SparseCode(code.values.bfloat16(), code.indices, code.n_features)


@pytest.fixture
def toy():
    plan = ToyPlan()
    plan.split = "heldout"
    source = ToySource(plan)
    source.spec = SPEC
    return SignedDictionary(), source, plan


def test_every_latent_once(toy, tmp_path):
    dictionary, source, plan = toy
    folder = export_delphi(dictionary, source, plan, tmp_path, 10**9, n_splits=3)
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        first, last = map(int, path.stem.split("_"))
        part = load_file(path)
        assert part["locations"].dtype == np.uint16 and part["activations"].dtype == np.float16
        assert part["locations"][:, 2].max(initial=0) <= last - first
        for (window, column, latent), value in zip(part["locations"].tolist(), part["activations"].tolist()):
            found[window, column, latent + first] = value
        np.testing.assert_array_equal(part["tokens"], np.concatenate([batch.ids_BT for batch in plan.made]))
    expected = {}
    for number, (tokens, batch) in enumerate(zip(plan.made, source.rows, strict=True)):
        code = dictionary.encode(batch.x_ND).to_dense()
        windows, columns = np.nonzero(tokens.keep_BT)
        where = {
            (int(tokens.document_B[w]), int(tokens.position_BT[w, c])): (int(w), int(c))
            for w, c in zip(windows, columns, strict=True)
        }
        for row, latent in torch.nonzero(code).tolist():
            w, c = where[tuple(batch.where_N2[row].tolist())]
            expected[number * len(tokens.ids_BT) + w, c, latent] = float(code[row, latent])
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), rtol=1e-3)
    assert json.loads((folder / "config.json").read_text())["n_tokens"] == sum(len(b.x_ND) for b in source.rows)


def test_a_second_export_leaves_nothing_of_the_first(toy, tmp_path):
    """delphi reads every range of latents that it finds."""
    dictionary, source, plan = toy
    folder = export_delphi(dictionary, source, plan, tmp_path, 10, n_splits=5)
    (folder / "mine.safetensors").write_bytes(b"")
    export_delphi(dictionary, source, plan, str(tmp_path), 10, n_splits=2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "0_5.safetensors",
        "6_11.safetensors",
        "config.json",
        "mine.safetensors",
    ]


def test_no_more_splits_than_features(toy, tmp_path):
    dictionary, source, plan = toy
    folder = export_delphi(dictionary, source, plan, tmp_path, 10, n_splits=40)
    assert len(list(folder.glob("*.safetensors"))) == json.loads((folder / "config.json").read_text())["n_splits"] == 12


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_values_that_half_precision_does_not_hold(toy, tmp_path, scale):
    dictionary, source, plan = toy
    encode = dictionary.encode
    dictionary.encode = lambda x_ND: encode(x_ND).scaled(scale)
    folder = export_delphi(dictionary, source, plan, tmp_path, 10, n_splits=1)
    values = load_file(folder / "0_11.safetensors")["activations"]
    assert np.isfinite(values).all() and values.all()


def test_codes_in_bfloat16(toy, tmp_path):
    dictionary, source, plan = toy
    encode = dictionary.encode
    dictionary.encode = lambda x_ND: in_bfloat16(encode(x_ND))
    folder = export_delphi(dictionary, source, plan, tmp_path, 10, n_splits=1)
    assert load_file(folder / "0_11.safetensors")["activations"].all()


def test_nothing_to_export(toy, tmp_path):
    dictionary, source, plan = toy
    source.rows = []
    with pytest.raises(DataError, match="no latents"):
        export_delphi(dictionary, source, plan, tmp_path, 10)
