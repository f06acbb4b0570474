"""Labels and notes as files for others: CSV that no spreadsheet executes, and JSON. No torch here."""

import csv
import io
import json

from saetools.features.store import FeatureStore

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def labels_csv(store: FeatureStore) -> str:
    """feature, label, note; a text that a spreadsheet would run as a formula begins with an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("feature", "label", "note"))
    for feature, texts in store.annotations().items():
        writer.writerow((feature, *(_inert(text) for text in texts)))
    return file.getvalue()


def labels_json(store: FeatureStore) -> str:
    """What the labels are of, then one entry per labelled feature."""
    info = store.info
    entries = [
        {"feature": feature, "label": label, "note": note} for feature, (label, note) in store.annotations().items()
    ]
    value = {"host": info.spec.host, "point": info.spec.point, "dictionary": info.kind, "labels": entries}
    return json.dumps(value, indent=1) + "\n"


def _inert(text: str) -> str:
    return "'" + text if text.startswith(FORMULA_STARTS) else text
