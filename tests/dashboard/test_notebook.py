"""The notebook face shows what the store holds, in a frame that can reach nothing."""

import base64
import html
import json
import random
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from fixture_store import N_FEATURES
from payloads import PAYLOADS

from saetools.dashboard.comparison import Comparison
from saetools.dashboard.notebook import Explorer
from saetools.errors import DataError, FormatError
from saetools.features.records import PromptFirings
from saetools.features.store import FeatureStore


@pytest.fixture
def explorer(store_path: Path) -> Explorer:
    return Explorer(FeatureStore.open(store_path))


def test_every_panel_has_a_figure(explorer: Explorer) -> None:
    feature = explorer.feature(2)
    matched = Comparison("other", np.array([0, -1]), np.array([0.5, -0.5]))
    firings = PromptFirings(("a", "<b>"), ((1, ((0, 2.0),)), (4, ((0, -1.0), (1, 1.5)))))
    model = Explorer(explorer.store, None, lambda text: firings, lambda other: matched)
    panels = [explorer.density(), explorer.map(), feature, feature.activations(), feature.logits()]
    panels += [explorer.table(), model.prompt("a<b>"), model.compare("other")]
    assert all(isinstance(panel.figure, go.Figure) for panel in panels)
    assert max(len(repr(panel)) for panel in [model, *panels]) < 300, "a notebook saves it beside what it shows"
    assert feature.record.feature == 2 and len(feature.examples) == 21
    assert len(explorer.map().figure.data[0].x) == N_FEATURES - 1, "features that never fire have no place"
    with pytest.raises(DataError):
        explorer.feature(N_FEATURES)
    assert explorer.feature(np.int64(2)) == feature, "as an argmax gives it"
    assert [list(row) for row in model.prompt("").figure.data[0].z] == [[2.0, 0.0], [-1.0, 1.5]]
    assert model.partners("other")[0] == (1, -1, -0.5)
    with pytest.raises(FormatError, match="no run"):
        explorer.training()
    for call in (explorer.prompt, explorer.compare):
        with pytest.raises(FormatError, match="explore the run"):
            call("x")


def test_training_is_one_figure(explorer: Explorer, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"n_tokens": 5, "loss": 0.5, "loss/a": 1, "loss/b": 2, "l0": 3}\n')
    panels = Explorer(explorer.store, tmp_path / "m.jsonl").training()
    assert len(panels) == 2 and [trace.name for trace in panels[0].figure.data] == ["loss", "a", "b"]
    assert len(panels.figure.data) == 4


def test_tables_are_escaped(explorer: Explorer) -> None:
    shown = explorer.table(limit=N_FEATURES)._repr_html_() + explorer._repr_html_()
    assert "<script" not in shown and "<img" not in shown and "&lt;script&gt;" in shown
    for feature in range(20):
        explorer.label(feature, "<script>'\"" * 4000, "note" * 1000)
    shown = [explorer._repr_html_(), explorer.table()._repr_html_(), explorer.table(search="script")._repr_html_()]
    assert all(len(text.encode()) <= 20_000 and "<script" not in text for text in shown)


def said(frame: str) -> str:
    """What a frame carries: its style, script and data, as its own script unpacks them."""
    packed = re.search(r'id="packed">([^<]*)<', html.unescape(frame))
    assert packed
    letters = packed[1].translate(str.maketrans(",./", "&<>"))
    return zlib.decompress(base64.b85decode(letters)).decode()


def test_frames_are_small_and_stand_alone(explorer: Explorer) -> None:
    """Whatever the store holds: contexts are left out until it fits, and the frame says how many are shown."""
    for feature in range(N_FEATURES):
        shown = explorer.feature(feature)._repr_html_()
        assert len(shown.encode()) <= 20_000 and "<script" not in shown
        style, script, view = said(shown).split("\0")
        assert "window.SaeFeature" in script and ".sae-context" in style and ".sae-map-canvas" not in style
        n_shown = sum(len(band["examples"]) for band in json.loads(view)["bands"])
        n_all = len(explorer.feature(feature).examples)
        assert n_shown == n_all or (0 < n_shown < n_all and f"{n_shown} of {n_all} contexts" in shown)
    explorer.label(0, "<script>'\"&" * 4000, "note" * 50_000)
    assert len(explorer.feature(0)._repr_html_().encode()) <= 20_000


def test_frames_of_prompts_are_small(explorer: Explorer) -> None:
    draw = random.Random(0)
    for n_tokens in (3, 400):
        tokens = tuple(f"{draw.random()}<b>" for _ in range(n_tokens))
        pairs = [tuple((at, draw.random()) for at in range(n_tokens)) for _ in range(30)]
        firings = PromptFirings(tokens, tuple(enumerate(pairs)))
        shown = Explorer(explorer.store, None, lambda text, firings=firings: firings).prompt("")._repr_html_()
        assert len(shown.encode()) <= 20_000
        bands = json.loads(said(shown).split("\0")[2])["bands"]
        assert bands[0]["examples"][0]["tokens"] == list(tokens)
        assert len(bands) == 20 or f"the strongest {len(bands)}" in shown


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
        inside.locator(".sae-bars path").first.wait_for(state="attached")  # histograms are drawn without plotly
    watched.check()
    assert html.escape("<script>") not in page.locator("body").inner_text()
