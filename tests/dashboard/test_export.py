"""The page that can be mailed: made without torch, and seen in a real browser."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixture_store import DEAD, N_FEATURES, TITLE
from gestures import go_to
from payloads import PAYLOADS

from saetools.dashboard.export import Contents, export_page
from saetools.dashboard.inline import fill, inline_json
from saetools.errors import DataError
from saetools.features.store import FeatureStore, Filter
from tests.test_architecture import BLOCKER

ROOT = Path(__file__).parents[2]
BLOCKED = ("torch", "transformer_lens", "transformers", "datasets", "dash", "numba")


@pytest.fixture(scope="session")
def page_path(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    store = FeatureStore.open(store_path)
    store.annotate(1, "<img src=x onerror=window.__pwned++>", "note </script><script>window.__pwned++</script>")
    export_page(Contents(store, n_features=N_FEATURES), path)
    return path


def test_no_torch_is_needed(store_path: Path, tmp_path: Path) -> None:
    code = f"""{BLOCKER.format(blocked=set(BLOCKED))}
from saetools.dashboard.export import Contents, export_page
from saetools.features.store import FeatureStore
export_page(Contents(FeatureStore.open({str(store_path)!r}), n_features=3), {str(tmp_path / "page.html")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
    assert (tmp_path / "page.html").stat().st_size < 5_500_000


def test_a_sample_is_seeded_and_alive(store_path: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(store_path)

    def shown(**options: Any) -> list[int]:
        export_page(Contents(store, **options), tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        rows = text.split('id="sae-page">')[1].split("</script>")[0]
        return [row["feature"] for row in json.loads(rows)["rows"]]

    assert shown(n_features=5) == shown(n_features=5) != shown(n_features=5, seed=1)
    assert DEAD not in shown(n_features=N_FEATURES) and len(shown(n_features=N_FEATURES)) == N_FEATURES - 1
    assert shown(features=[DEAD, 2]) == [2, DEAD]
    with pytest.raises(DataError, match="no feature to show"):
        export_page(Contents(store, features=[]), tmp_path / "page.html")
    with pytest.raises(DataError, match=rf"no feature {N_FEATURES}: the store has 0 to {N_FEATURES - 1}"):
        export_page(Contents(store, features=[1, N_FEATURES]), tmp_path / "page.html")


def test_inline_json_holds_no_markup_and_reads_back() -> None:
    text = inline_json(PAYLOADS)
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text) == PAYLOADS


def test_fill_does_not_read_what_it_put_in() -> None:
    assert fill("a{{x}}b{{y}}", x="{{y}}", y="2") == "a{{y}}b2"


# --- in a browser -------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_page_works(watched: Any, page_path: Path) -> None:
    page = watched.page
    page.goto(page_path.as_uri())
    page.wait_for_selector(".sae-token")
    assert page.title() == TITLE
    rows = "[...document.querySelectorAll('#sae-rows tr')].map(row => Number(row.dataset.feature))"
    by_density = page.evaluate(rows)
    assert by_density == sorted(by_density, reverse=True), "the fixture's density grows with the feature"
    page.click("[data-column=feature]")
    assert page.evaluate(rows) == by_density
    page.click("[data-column=feature]")
    assert page.evaluate(rows) == sorted(by_density)
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Feature")
    page.click("[data-column=kurtosis]")
    assert page.evaluate(rows)[-1] == 3, "undefined values come last"
    page.fill("#sae-search", "17")
    assert page.evaluate(rows) == [17]
    page.click("#sae-rows tr")
    page.wait_for_selector("#sae-feature-title:text-is('Feature 17')")
    page.fill("#sae-search", "")
    assert page.locator(".sae-bars svg").count() == 3, "density, activations, logits"
    page.click("text=Numbers >> nth=1")
    page.locator(".sae-numbers").first.wait_for()
    assert page.locator(".sae-numbers tr").count() > 3
    watched.check()


ASKED = ["count<=8", "fires>400", "contexts>=50", "n_contexts<9 kurtosis>2", "skewness<0", "mean_square>=0.25", "max<0"]
ASKED += [
    "(",
    "</",
    "%{",
    "${",
    "=",
    "zebra",
    "stripes <",
    "density>0.001 17",
    "17",
    "1e5",
    "COUNT<3",
    "max_value>1e0 </",
    "density > 0.001  max<= 3",
    "densty > 0.001",
]


@pytest.mark.browser
def test_it_is_searched_as_the_live_app_is(watched: Any, store_path: Path, tmp_path: Path) -> None:
    """By every column of numbers, by signs, notes and lists."""
    store = FeatureStore.open(store_path)
    store.annotate(5, "striped", "Zebra <stripes>")
    store.set_list("<b>few", [3, 1, 5])
    export_page(Contents(store, features=range(N_FEATURES)), tmp_path / "page.html")
    page = watched.page
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector(".sae-token")
    rows = "[...document.querySelectorAll('#sae-rows tr')].map(row => Number(row.dataset.feature))"
    for text in ASKED:
        page.fill("#sae-search", text)
        expected = [row.feature for row in store.table(filter=Filter(text=text), limit=N_FEATURES).rows]
        assert page.evaluate(rows) == expected, text
    page.fill("#sae-search", "")
    for name, expected in (("<b>few", [5, 3, 1]), ("<b>fe", []), ("__proto__", [])):
        page.fill("#list-choice", name)
        assert page.evaluate(rows) == expected
    page.fill("#list-choice", "")
    assert len(page.evaluate(rows)) == N_FEATURES
    watched.check()
    store.annotate(5, "")
    store.set_list("<b>few", [])


@pytest.mark.browser
def test_the_keyboard_does_everything(watched: Any, page_path: Path) -> None:
    page = watched.page
    page.goto(page_path.as_uri())
    page.wait_for_selector(".sae-token")
    first = page.locator("#sae-feature-title").inner_text()
    page.keyboard.press("j")
    page.wait_for_selector(f"#sae-feature-title:not(:text-is({first!r}))")
    page.keyboard.press("k")
    page.wait_for_selector(f"#sae-feature-title:text-is({first!r})")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "sae-search"
    page.keyboard.type("j?")
    assert page.input_value("#sae-search") == "j?"
    page.keyboard.press("Escape")
    go_to(page, 17)
    assert page.evaluate("document.activeElement.id") != "sae-search"
    page.keyboard.press("?")
    assert page.locator("#sae-help").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("#sae-help", state="hidden")
    page.locator(".sae-context").first.focus()
    peak = page.locator(".sae-tip").inner_text()
    assert "4" in peak
    page.keyboard.press("ArrowRight")
    assert page.locator(".sae-tip").inner_text() != peak
    watched.check()


@pytest.mark.slow
@pytest.mark.browser
def test_hostile_text_is_shown_and_never_run(watched: Any, page_path: Path, store_path: Path) -> None:
    assert len(PAYLOADS) >= 60
    page, store = watched.page, FeatureStore.open(store_path)
    page.goto(page_path.as_uri())
    page.wait_for_selector(".sae-token")
    for feature in range(N_FEATURES - 1):
        page.evaluate(f"location.hash = '{feature}'")
        page.wait_for_selector(f"#sae-feature-title:has-text('Feature {feature}')")
        found = page.evaluate("""[...document.querySelectorAll('.sae-context')].map(
            context => [...context.children].map(token => token.textContent))""")
        expected = [list(example.tokens) for example in store.examples(feature)]
        assert sorted(found) == sorted(tokens for tokens in expected if tokens in found) and len(found) >= 12
        page.locator(".sae-context").first.wait_for()  # until it is visible
    page.evaluate("location.hash = '1'")
    page.wait_for_selector(".sae-name")
    assert page.locator(".sae-name").evaluate("node => node.textContent") == "<img src=x onerror=window.__pwned++>"
    watched.check()


@pytest.mark.browser
def test_the_policy_would_stop_a_script(watched: Any, page_path: Path) -> None:
    page = watched.page
    page.goto(page_path.as_uri())
    page.evaluate("""() => { const s = document.createElement('script'); s.textContent = 'window.__pwned++';
        document.body.append(s); const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; }""")
    for _ in range(300):  # until both refusals have been told
        if len(watched.troubles) >= 2:
            break
        page.wait_for_timeout(100)
    assert page.evaluate("window.__pwned") == 0
    assert len(watched.troubles) == 2 and all("Content Security Policy" in text for text in watched.troubles)


OFF_CENTRE = """texts => texts.filter(text => text.getBoundingClientRect().top < innerHeight).map(text => {
    const [box, peak] = [text, text.querySelector(".sae-peak")].map(node => node.getBoundingClientRect());
    return Math.abs(box.left + box.right - peak.left - peak.right) / 2; })"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 1281, 910])
def test_peaks_stand_below_each_other(browser: Any, page_path: Path, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 2000})
    page = context.new_page()
    page.set_default_timeout(90_000)  # a loaded machine is slow, not wrong
    page.goto(page_path.as_uri())
    for _ in range(2):
        page.wait_for_selector(".sae-example:not(.sae-later) .sae-token")
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        off = page.locator(".sae-example:not(.sae-later) .sae-context").evaluate_all(OFF_CENTRE)
        assert len(off) > 2 and max(off) < 2, off
        page.keyboard.press("j")
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_hangs_over_the_edge(browser: Any, page_path: Path, scheme: str, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 850})
    page = context.new_page()
    page.set_default_timeout(90_000)  # a loaded machine is slow, not wrong
    page.goto(page_path.as_uri())
    page.wait_for_selector(".sae-token")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
