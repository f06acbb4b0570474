"""The views of a page beside the feature: map with lasso, comparison, curves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixture_store import N_FEATURES
from gestures import lasso

from saetools.dashboard.comparison import Comparison, comparison_view, cosine_histogram, partner_view
from saetools.dashboard.curves import read_metrics, training_curves
from saetools.dashboard.export import Contents, export_page
from saetools.dashboard.panels import feature_map, map_points
from saetools.features.store import FeatureStore


def beside(store: FeatureStore) -> Comparison:
    partner_F = np.roll(np.arange(N_FEATURES), 1)
    partner_F[7] = -1
    return Comparison("other <i>", partner_F, np.linspace(-0.2, 1, N_FEATURES), store)


@pytest.fixture(scope="module")
def page_path(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    lines = [{"n_tokens": 1000 * i + 1000, "loss": 1 / (i + 1), "l0": 32.0} for i in range(20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = FeatureStore.open(store_path)
    curves = training_curves(read_metrics(folder / "metrics.jsonl"))
    contents = Contents(store, n_features=20, curves=curves, comparison=beside(store), per_band={"top": 2})
    export_page(contents, folder / "page.html")
    return folder / "page.html"


def test_map_points_are_the_figure(store_path: Path) -> None:
    import base64

    store = FeatureStore.open(store_path)
    points, trace = map_points(store), feature_map(store).figure.data[0]
    for name, dtype, expected in (("feature", "<i4", trace.customdata), ("x", "<f4", trace.x), ("y", "<f4", trace.y)):
        values = np.frombuffer(base64.b64decode(points[name]), dtype)
        np.testing.assert_allclose(values, np.array(expected, float), atol=1e-4)
    assert len(points["tokens"]) == len(trace.x)


def test_comparison_lists_the_least_alike_first(store_path: Path) -> None:
    store = FeatureStore.open(store_path)
    comparison = beside(store)
    view = comparison_view(comparison, store)
    assert [row[2] for row in view["rows"]] == sorted(comparison.cosine_F.tolist())
    tokens = {row.feature: row.label or row.peak_token or "" for row in store.table(limit=N_FEATURES).rows}
    assert all(row[3:] == [tokens[row[0]], tokens.get(row[1], "")] for row in view["rows"])
    assert [row[0] for row in comparison_view(comparison, store, features=[5, 2])["rows"]] == [2, 5]
    assert sum(cosine_histogram(comparison).figure.data[0].y) == N_FEATURES - 1
    assert "1 features have no partner" in cosine_histogram(comparison).note
    found = partner_view(comparison, 4)
    assert found is not None and found["view"]["feature"] == 3 and found["cosine"] == comparison.cosine_F[4]
    assert partner_view(comparison, 7) is None and partner_view(comparison, N_FEATURES) is None


ROWS = "[...document.querySelectorAll('#sae-rows tr[data-feature]')].map(row => Number(row.dataset.feature))"


@pytest.mark.browser
def test_a_lasso_filters_the_table(watched: Any, page_path: Path) -> None:
    page = watched.page
    page.goto(page_path.as_uri())
    page.wait_for_selector(".sae-token")
    everything = page.evaluate(ROWS)
    page.keyboard.press("2")
    page.wait_for_selector("#sae-map[data-points]")
    lasso(page, [(0.02, 0.02), (0.55, 0.02), (0.55, 0.98), (0.02, 0.98), (0.02, 0.05)])
    listed = page.evaluate(ROWS)
    assert 0 < len(listed) < len(everything) and set(listed) < set(everything)
    assert page.locator(".sae-map-tools [role=status]").inner_text() == f"{len(listed)} features in the table"
    page.locator(".sae-map-canvas").focus()
    page.keyboard.press("Escape")
    assert page.evaluate(ROWS) == everything
    page.keyboard.press("s")
    assert set(page.evaluate(ROWS)) == set(everything), "all are in view"
    for key in ("+", "ArrowLeft", "s"):
        page.keyboard.press(key)
    assert len(page.evaluate(ROWS)) < len(everything)
    watched.check()


@pytest.mark.browser
def test_partner_and_curves(watched: Any, page_path: Path) -> None:
    page = watched.page
    page.goto(page_path.as_uri())
    page.wait_for_selector(".sae-token")
    page.click("#tab-Compare")
    assert page.locator("#panel-Compare h3").first.inner_text() == "Beside other <i>"
    page.wait_for_selector("#sae-cosines .sae-bars svg")
    row = page.locator("#sae-compared tr[data-feature]").first
    feature = int(row.get_attribute("data-feature"))
    row.click()
    page.wait_for_selector(f"#sae-partner-title:has-text('Feature {feature} here, {feature - 1} there')")
    assert page.locator("#sae-own .sae-token").count() > 20 and page.locator("#sae-partner .sae-token").count() > 20
    page.click("#tab-Training")
    page.wait_for_selector("#sae-curves .main-svg")
    assert page.locator("#sae-curves .sae-chart").count() == 2
    assert "0.05 at 20,000 tokens" in page.locator("#sae-curves").inner_text()
    watched.check()
