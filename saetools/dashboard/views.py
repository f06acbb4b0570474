"""What a page's scripts draw: plain data made from store records. No torch, no HTML here."""

from collections.abc import Iterable
from typing import Any

from saetools.dashboard.panel import number
from saetools.dashboard.panels import activation_histogram, logits_histogram
from saetools.features.records import BAND_TITLES, Example, FeatureRecord, Neighbour, StoreInfo
from saetools.features.store import FeatureStore, TableRow

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("feature", "Feature", "row of the dictionary"),
    ("peak_token", "Top token", "token of the strongest context"),
    ("label", "Label", "name given by a person"),
    ("density", "Density", "fraction of tokens at which it fires"),
    ("max_value", "Max", "value of greatest magnitude"),
    ("mean", "Mean", "mean value where it fires"),
    ("kurtosis", "Kurtosis", "excess kurtosis of the values where it fires"),
    ("top_logit", "Top logit", "token that its decoder row raises most"),
)
"""(column of the store, heading, explanation) of the tables of all pages."""


def table_rows(rows: Iterable[TableRow]) -> list[dict[str, Any]]:
    """Lines of a table with the columns above."""
    return [{name: getattr(row, name) for name, _, _ in COLUMNS} for row in rows]


def feature_view(store: FeatureStore, feature: int, per_band: dict[str, int] | None = None) -> dict[str, Any]:
    """All that a page shows of one feature. `per_band` limits the examples of each band; None: all."""
    record = store.feature(feature)
    label, note = store.annotation(feature)
    charts = [activation_histogram(record)] + ([logits_histogram(record)] if record.logits else [])
    return {
        "feature": feature,
        "label": label,
        "note": note,
        "statistics": statistics(record, store.info),
        "charts": [panel.to_json() for panel in charts],
        "logits": None if record.logits is None else _logits(record, store.info),
        "neighbours": _neighbours(record),
        "bands": bands(store.examples(feature), per_band),
        "max_value": record.max_value,
    }


def statistics(record: FeatureRecord, info: StoreInfo) -> list[dict[str, str]]:
    """Name, value and explanation of each number, in the order shown."""
    tokens = f"{info.n_tokens:,} tokens"
    shown = [
        ("Density", f"{number(100 * record.density)}%", f"of {tokens}"),
        ("Fires", f"{record.count:,}", f"tokens, in {record.n_contexts:,} contexts"),
        ("Mean", number(record.mean), "value where it fires"),
        ("Max", number(record.max_value), "value of greatest magnitude"),
        ("E[a²]", number(record.mean_square), "over all tokens, silent ones included"),
        ("Skewness", number(record.skewness), "of the values where it fires"),
        ("Kurtosis", number(record.kurtosis), "excess, of the values where it fires"),
    ]
    return [{"name": name, "value": value, "about": about} for name, value, about in shown]


def bands(examples: list[Example], per_band: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """Examples by band in the order of BAND_TITLES, empty bands left out."""
    found = []
    for band, title in BAND_TITLES.items():
        own = [example for example in examples if example.band == band]
        if per_band is not None:
            own = own[: per_band.get(band, 0)]
        if own:
            found.append({"band": band, "title": title, "examples": [_compact(example) for example in own]})
    return found


def _compact(example: Example) -> dict[str, Any]:
    data = example.to_json()
    return data | {"values": [_short(value) for value in data["values"]]}


def _logits(record: FeatureRecord, info: StoreInfo) -> dict[str, Any]:
    assert record.logits is not None
    return {
        "note": info.logits_note,
        "top": [[weight.token, _short(weight.weight)] for weight in record.logits.top],
        "bottom": [[weight.token, _short(weight.weight)] for weight in record.logits.bottom],
    }


def _neighbours(record: FeatureRecord) -> list[dict[str, Any]]:
    groups: list[tuple[str, str, tuple[Neighbour, ...]]] = [
        ("Similar decoder rows", "cosine", record.decoder_neighbours),
        ("Similar encoder rows", "cosine", record.encoder_neighbours),
        ("Fires together", "Jaccard: both / either", record.jaccard),
        ("Fires together, against chance", "PMI in nats", record.pmi),
        ("Correlated values", "Pearson r over all tokens", record.pearson),
    ]
    return [
        {"title": title, "unit": unit, "items": [[n.feature, _short(n.value)] for n in neighbours]}
        for title, unit, neighbours in groups
        if neighbours
    ]


def _short(value: float) -> float:
    """Four significant digits: what a page shows, at half the bytes."""
    return float(f"{value:.4g}")
