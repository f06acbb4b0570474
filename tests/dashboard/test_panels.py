"""Panels say what the records say."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from saetools.dashboard import panels
from saetools.dashboard.export import facts
from saetools.dashboard.panel import number, plain, visible
from saetools.dashboard.panels import activation_histogram, density_histogram, logits_bars, logits_histogram
from saetools.features.records import bin_edges
from saetools.features.store import FeatureStore


@pytest.fixture
def store(store_path: Path) -> FeatureStore:
    return FeatureStore.open(store_path)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.5, 6.0, [0.5, 1.0, 2.0, 5.0]),
        (2.0**-0.1 * 3, 2.0**0.9 * 3, [3.0, 3 * 2.0**0.8]),
        (0.02, 90.0, [0.1, 1.0, 10.0]),
    ],
)
def test_values_have_a_scale_however_alike_they_are(low: float, high: float, ticks: list[float]) -> None:
    assert panels._log_ticks(low, high) == pytest.approx(ticks)


def test_density_counts_every_feature_once(store: FeatureStore) -> None:
    panel = density_histogram(store)
    assert sum(panel.figure.data[0].y) == store.info.n_features - 1
    assert "1 of" in panel.note and "never fired" in panel.note
    assert sum(count for _, count in panel.rows) == store.info.n_features - 1


def test_a_density_of_one_has_an_axis() -> None:
    store = SimpleNamespace(columns=lambda *names: {"density": np.ones(3)})
    panel = density_histogram(store)  # type: ignore[arg-type]
    assert sum(panel.data[0]["y"]) == 3 and panel.layout["xaxis"]["tickvals"] == [-1, 0]


def test_where_a_host_lies_is_not_said(store: FeatureStore, tmp_path: Path) -> None:
    for host, said in ((str(tmp_path / "mine"), "mine"), ("org/model", "org/model")):
        info = store.info.model_copy(update={"spec": store.info.spec.model_copy(update={"host": host})})
        assert dict(facts(SimpleNamespace(info=info)))["host"] == said  # type: ignore[arg-type]


def test_activations_have_the_counts_and_places_of_the_record(store: FeatureStore) -> None:
    record = store.feature(2)
    figure = activation_histogram(record).figure
    assert [trace.name for trace in figure.data] == ["positive", "negative"]
    for trace, counts in zip(figure.data, (record.histogram.positive, record.histogram.negative), strict=True):
        assert trace.y == counts
        for x, low, high in zip(trace.x, bin_edges()[190:], bin_edges()[191:], strict=False):
            assert low < 10**x < high
    assert len(activation_histogram(store.feature(0)).figure.data) == 1
    dead = store.feature(store.info.n_features - 1)
    assert activation_histogram(dead).rows == ()


def test_logits(store: FeatureStore) -> None:
    record = store.feature(0)
    assert record.logits is not None
    assert sum(logits_histogram(record).figure.data[0].y) == sum(record.logits.counts)
    figure = logits_bars(record).figure
    assert list(figure.data[0].x) == [w.weight for w in (*record.logits.top, *reversed(record.logits.bottom))]
    assert not any("<" in text for text in figure.layout.yaxis.ticktext)


def test_text_helpers() -> None:
    assert visible(" a\n\tb  ") == "␣a↵⇥b␣␣" and visible("   ") == "␣␣␣" and visible("") == ""
    assert plain("<b>&amp;%{x}") == "&lt;b&gt;&amp;amp;%\u200b{x}"
    assert [number(v) for v in (None, 0.0, 0.0123, 123456.0, 1.5e-6)] == ["-", "0", "0.0123", "1.2e+05", "1.5e-06"]
    assert math.isclose(float(number(-0.5)), -0.5)
