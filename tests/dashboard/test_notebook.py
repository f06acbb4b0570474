"""The notebook face shows what the store holds, in a frame that can reach nothing."""

import html
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from fixture_store import N_FEATURES
from payloads import PAYLOADS

from saetools.dashboard.notebook import Explorer
from saetools.errors import DataError, FormatError
from saetools.features.store import FeatureStore


@pytest.fixture
def explorer(store_path: Path) -> Explorer:
    return Explorer(FeatureStore.open(store_path))


def test_every_panel_has_a_figure(explorer: Explorer) -> None:
    feature = explorer.feature(2)
    panels = [explorer.density(), explorer.map(), feature, feature.activations(), feature.logits()]
    assert all(isinstance(panel.figure, go.Figure) for panel in panels)
    assert feature.record.feature == 2 and len(feature.examples) == 21
    assert len(explorer.map().figure.data[0].x) == N_FEATURES - 1, "features that never fire have no place"
    with pytest.raises(DataError):
        explorer.feature(N_FEATURES)
    with pytest.raises(FormatError, match="no run"):
        explorer.training()


def test_tables_are_escaped(explorer: Explorer) -> None:
    shown = explorer.table(limit=N_FEATURES)._repr_html_() + explorer._repr_html_()
    assert "<script" not in shown and "<img" not in shown and "&lt;script&gt;" in shown


@pytest.mark.slow
@pytest.mark.browser
def test_frames_show_text_and_run_nothing(watched: Any, explorer: Explorer, tmp_path: Path) -> None:
    page = watched.page
    for feature, payload in enumerate(PAYLOADS[:60]):
        frame = explorer.feature(feature)._repr_html_()
        assert frame.startswith('<iframe sandbox="allow-scripts"')
        (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{frame}")
        page.goto((tmp_path / "page.html").as_uri())
        inside = page.frame_locator("iframe")
        inside.locator(".sae-peak").first.wait_for()
        assert inside.locator(".sae-peak").first.evaluate("node => node.textContent") == payload
        assert inside.locator("body").evaluate("() => window.__pwned") == 0
        assert inside.locator(".sae-bars span").count() >= 5, "charts are drawn without plotly"
    watched.check()
    assert html.escape("<script>") not in page.locator("body").inner_text()
