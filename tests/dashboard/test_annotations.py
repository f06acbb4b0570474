"""Labels as files: a spreadsheet runs none of them, JSON keeps them as they are."""

import csv
import io
import json
from pathlib import Path

import pytest
from fixture_store import write_fixture
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


def test_csv_holds_no_formula(store: FeatureStore) -> None:
    rows = list(csv.reader(io.StringIO(labels_csv(store))))
    assert rows[0] == ["feature", "label", "note"] and len(rows) == len(store.annotations()) + 1
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]
    assert [row[1] for row in rows if "calc" in row[1]] == ["'=cmd|'/C calc'!A0"]


def test_json_reads_back(store: FeatureStore) -> None:
    entries = json.loads(labels_json(store))
    assert {int(e["index"]): (e["description"], e["notes"]) for e in entries} == store.annotations()
    assert {(e["modelId"], e["layer"], e["typeName"]) for e in entries} == {
        ("<i>host</i>", "blocks.0.hook_out-topk", None)
    }
