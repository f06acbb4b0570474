"""What every page owes to eyes: contrast of coloured tokens, no motion where none is wanted, numbers beside charts."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixture_store import N_FEATURES

from saetools.dashboard.comparison import Comparison
from saetools.dashboard.curves import training_curves
from saetools.dashboard.export import Contents, export_page
from saetools.features.store import FeatureStore

pytestmark = pytest.mark.browser
LEAST_CONTRAST = 4.5


@pytest.fixture(scope="module")
def page_path(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("appearance") / "page.html"
    store = FeatureStore.open(store_path)
    lines = [{"n_tokens": 1000 * i + 1000, "loss": 1 / (i + 1), "l0": 32.0} for i in range(5)]
    partner_F = np.roll(np.arange(N_FEATURES), 1)
    comparison = Comparison("other", partner_F, np.linspace(0, 1, N_FEATURES), store)
    export_page(Contents(store, n_features=8, curves=training_curves(lines), comparison=comparison), path)
    return path


# Contrast (WCAG 2.2) of the text of a token with its ground, as the browser mixes it over what lies below.
CONTRASTS = """() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const seen = (...colours) => {
    pen.clearRect(0, 0, 1, 1);
    colours.forEach((colour) => { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); });
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (...colours) => {
    const [more, less] = colours.map(light).sort((a, b) => b - a);
    return (more + 0.05) / (less + 0.05);
  };
  const card = getComputedStyle(document.querySelector(".sae-examples")).backgroundColor;
  const token = document.querySelector(".sae-context .sae-token");
  const found = [];
  for (const sign of ["sae-positive", "sae-negative"]) for (let step = 0; step <= 20; step += 1) {
    token.className = `sae-token ${sign}`;
    token.style.setProperty("--strength", String(step / 20));
    const style = getComputedStyle(token);
    found.push([sign, step / 20, contrast(seen(card, style.backgroundColor), seen(style.color))]);
  }
  return found;
}"""


def test_tokens_are_readable_at_every_strength(browser: Any, page_path: Path) -> None:
    page = browser.new_page(reduced_motion="reduce")  # colours change at once
    page.set_default_timeout(90_000)  # a loaded machine is slow, not wrong
    page.goto(page_path.as_uri())
    page.wait_for_selector(".sae-token")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate(CONTRASTS)
        weakest = {sign: min(each for name, _, each in found if name == sign) for sign, _, _ in found}
        assert len(found) == 42 and min(weakest.values()) >= LEAST_CONTRAST, weakest
        for sign in weakest:  # one hue, stronger with the value: contrast falls steadily from the page's own
            steps = [each for name, _, each in found if name == sign]
            assert all(after <= before + 0.01 for before, after in pairwise(steps)) and steps[0] > 10
    page.close()


MOVING = """[...document.querySelectorAll("*")].filter((node) => {
  const style = getComputedStyle(node);
  const lasts = (text) => text.split(",").some((each) => parseFloat(each) > 0);
  const moves = style.animationName !== "none" && lasts(style.animationDuration);
  return lasts(style.transitionDuration) || moves || style.scrollBehavior === "smooth";
}).map((node) => node.outerHTML.slice(0, 80))"""


def test_nothing_moves_where_motion_is_not_wanted(browser: Any, page_path: Path) -> None:
    found, page = {}, browser.new_page()
    page.set_default_timeout(90_000)
    page.goto(page_path.as_uri())
    page.wait_for_selector(".sae-token")
    for motion in ("no-preference", "reduce"):
        page.emulate_media(reduced_motion=motion)
        found[motion] = page.evaluate(MOVING)
    page.close()
    assert found["no-preference"] and found["reduce"] == []


def test_every_chart_has_its_numbers(watched: Any, page_path: Path) -> None:
    page = watched.page
    page.goto(page_path.as_uri())
    page.wait_for_selector(".sae-token")
    for tab in ("Compare", "Training"):
        page.click(f"#tab-{tab}")
    page.wait_for_selector("#sae-curves .main-svg")
    charts = page.locator(".sae-chart")
    assert charts.count() == 10  # density, cosines, loss, L0; activations and logits thrice
    for chart in charts.all():
        assert chart.locator(".sae-plot[role=img][aria-label]").count() == 1
        chart.locator("summary").evaluate("node => node.click()")
        chart.locator(".sae-numbers td").first.wait_for(state="attached")
        shown = chart.evaluate("figure => [figure.sae.panel.rows.length, figure.querySelectorAll('tbody tr').length]")
        assert shown[0] == shown[1] > 0
    watched.check()


def test_a_legend_stands_above_the_bars(watched: Any, store_path: Path, tmp_path: Path) -> None:
    export_page(Contents(FeatureStore.open(store_path), features=[2]), tmp_path / "page.html")
    page = watched.page
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector(".sae-bars-legend")
    legend, bars = page.evaluate("""() => {
      const legend = document.querySelector(".sae-bars-legend");
      const paths = [...legend.parentElement.querySelectorAll("path")];
      return [legend.getBoundingClientRect().bottom, paths.map((path) => path.getBoundingClientRect().top)];
    }""")
    assert len(bars) == 2 and legend <= min(bars)
