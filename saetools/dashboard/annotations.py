"""Labels and notes as files for others: CSV that no spreadsheet executes, and JSON. No torch here."""

import csv
import io
import json

from saetools.features.store import FeatureStore

FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What a spreadsheet takes for the start of a formula, the full-width signs included."""


def labels_csv(store: FeatureStore) -> str:
    """feature, label, note, lists it is on; what a spreadsheet would run as a formula begins with an apostrophe."""
    listed: dict[int, list[str]] = {}
    for name, features in store.lists().items():
        for feature in features:
            listed.setdefault(feature, []).append(name)
    written = store.annotations()
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # else a lone \r would stand bare
    writer.writerow(("feature", "label", "note", "lists"))
    for feature in sorted({*written, *listed}):
        texts = (*written.get(feature, ("", "")), "; ".join(listed.get(feature, ())))
        writer.writerow((feature, *(_inert(text) for text in texts)))
    return file.getvalue()


def labels_json(store: FeatureStore) -> str:
    """One entry per labelled feature, with the names that Neuronpedia's explanation exports use.

    [{"modelId", "layer", "index" (text), "description", "notes", "typeName", "explanationModelName"}]; the last two are
    null: a person wrote it. `layer` is point and kind of dictionary, joined by a hyphen.
    """
    info = store.info
    entries = [
        {
            "modelId": info.spec.host_name,
            "layer": f"{info.spec.point}-{info.kind}",
            "index": str(feature),
            "description": label,
            "notes": note,
            "typeName": None,
            "explanationModelName": None,
        }
        for feature, (label, note) in store.annotations().items()
    ]
    return json.dumps(entries, indent=1) + "\n"


def _inert(text: str) -> str:
    return "'" + text if text.startswith(FORMULA_STARTS) else text
