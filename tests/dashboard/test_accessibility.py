"""axe-core finds nothing serious or critical on exported pages and the frames of notebooks, in light and in dark."""

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe import serious
from fixture_store import N_FEATURES

from saetools.dashboard.comparison import Comparison
from saetools.dashboard.curves import training_curves
from saetools.dashboard.export import Contents, export_page
from saetools.dashboard.notebook import Explorer
from saetools.features.records import PromptFirings
from saetools.features.store import FeatureStore

pytestmark = pytest.mark.browser
DRAWN = {
    "Feature": ".sae-token",
    "Map": "#sae-map[data-points]",
    "Compare": "#sae-partner .sae-token",
    "Training": "#sae-curves .main-svg",
}


def opened(browser: Any, scheme: str, width: int, path: Path) -> Any:
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(90_000)  # a loaded machine is slow, not wrong
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize(
    ("scheme", "width"), [pytest.param("light", 1280, marks=pytest.mark.slow), ("dark", 1280), ("light", 400)]
)
def test_exported_page(browser: Any, store_path: Path, tmp_path: Path, scheme: str, width: int) -> None:
    store = FeatureStore.open(store_path)
    lines = [{"n_tokens": 1000 * i + 1000, "loss": 1 / (i + 1), "l0": 32.0} for i in range(5)]
    comparison = Comparison("other", np.roll(np.arange(N_FEATURES), 1), np.linspace(0, 1, N_FEATURES), store)
    export_page(Contents(store, None, 5, training_curves(lines), comparison), tmp_path / "page.html")
    page = opened(browser, scheme, width, tmp_path / "page.html")
    for tab, drawn in DRAWN.items():
        page.click(f"#tab-{tab}")
        page.wait_for_selector(drawn)
        assert serious(page) == [], tab
    page.keyboard.press("?")
    page.wait_for_selector("#sae-help[open]")
    assert serious(page) == []
    page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_frames_of_notebooks(browser: Any, store_path: Path, tmp_path: Path, scheme: str) -> None:
    firings = PromptFirings(("def ", "f"), ((1, ((0, 2.0),)),))
    explorer = Explorer(FeatureStore.open(store_path), None, lambda text: firings)
    for shown in (explorer.feature(2), explorer.prompt("def f")):
        (document,) = re.findall('srcdoc="([^"]*)"', shown._repr_html_())  # axe-core cannot look into a sandbox
        (tmp_path / "page.html").write_text(html.unescape(document), encoding="utf-8")
        page = opened(browser, scheme, 1000, tmp_path / "page.html")
        page.wait_for_selector(".sae-token")
        assert serious(page) == []
        page.context.close()
