"""Labels as files: a spreadsheet runs none of them, JSON keeps them as they are."""

import csv
import io
import json
from pathlib import Path

import jsonschema
import pytest
from fixture_store import N_FEATURES, write_fixture
from payloads import PAYLOADS

from saetools.dashboard.annotations import labels_csv, labels_json
from saetools.features.store import FeatureStore


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    write_fixture(tmp_path / "features")
    store = FeatureStore.open(tmp_path / "features")
    texts = [text for text in PAYLOADS if text.isprintable()]
    for feature, text in enumerate(texts):
        store.annotate(feature, text, f"note {text}")
    return store


# The columns of Neuronpedia's Explanation table that its exports have and a label can fill, with their types
# (apps/webapp/prisma/schema.prisma and utils/.../export-data.py of hijohnnylin/neuronpedia, read 2026-11).
NEURONPEDIA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            **{name: {"type": "string"} for name in ("modelId", "layer", "index", "description")},
            **{name: {"type": ["string", "null"]} for name in ("notes", "typeName", "explanationModelName")},
        },
        "required": ["modelId", "layer", "index", "description"],
        "additionalProperties": False,
    },
}


def cells(store: FeatureStore) -> list[list[str]]:
    return list(csv.reader(io.StringIO(labels_csv(store), newline="")))


def test_csv_holds_no_formula(store: FeatureStore) -> None:
    rows = cells(store)
    assert rows[0] == ["feature", "label", "note", "lists"] and len(rows) == len(store.annotations()) + 1
    assert [row[1] for row in rows if "calc" in row[1]] == ["'=cmd|'/C calc'!A0"]
    starts = ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
    for feature, start in enumerate(starts):
        store.annotate(feature, f"{start}1+1", f"{start}2")
        store.set_list(f"{start}list", [feature])
    kept = {int(row[0]): row[1:] for row in cells(store)[1:]}
    for feature, start in enumerate(starts):
        assert kept[feature] == [f"'{start}1+1", f"'{start}2", f"'{start}list"]


def test_lists_are_exported_beside_labels(store: FeatureStore) -> None:
    store.set_list("odd", [1, N_FEATURES - 1])
    store.set_list("all", [1])
    rows = {int(row[0]): row for row in cells(store)[1:]}
    assert rows[1][3] == "all; odd" and rows[N_FEATURES - 1][1:] == ["", "", "odd"] and rows[2][3] == ""


def test_json_does_not_say_where_the_host_lies(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = store.info.spec.model_copy(update={"host": "/home/somebody/models/mine"})
    monkeypatch.setattr(store, "info", store.info.model_copy(update={"spec": spec}))
    text = labels_json(store)
    assert "somebody" not in text and {entry["modelId"] for entry in json.loads(text)} == {"mine"}


def test_json_reads_back(store: FeatureStore) -> None:
    entries = json.loads(labels_json(store))
    jsonschema.validate(entries, NEURONPEDIA)
    assert {int(e["index"]): (e["description"], e["notes"]) for e in entries} == store.annotations()
    assert {(e["modelId"], e["layer"], e["typeName"]) for e in entries} == {
        ("<i>host</i>", "blocks.0.hook_out-topk", None)
    }
