"""The page of several dictionaries: what is drawn, what is told, and that hostile names stay text."""

import math
from pathlib import Path
from typing import Any

import pytest
from axe import serious
from payloads import PAYLOADS

from saetools.dashboard.evaluations import comparison_page, curves, figure_table, scores, trade_offs
from saetools.dashboard.report import Section, Table, report_page
from saetools.records import EvalRecord


def record(name: str, value: float | None, evaluation: str = "reconstruction", **fields: Any) -> EvalRecord:
    given = {"unit": "fraction", "n": 1000, "config": {"evaluation": evaluation}, **fields}
    return EvalRecord(name=name, value=value, **given)


def records(shift: float) -> list[EvalRecord]:
    return [
        record(
            "fvu", 0.2 + shift, spread=(0.1 + shift, 0.4 + shift), series={"first_position": [0, 1], "fvu": [0.3, 0.1]}
        ),
        record("l0_mean", 30 + shift, "sparsity"),
        record("zipf_exponent", 1.1, "sparsity", series={"rank": [1, 10, 100], "density": [0.5, 0.1, 0.0]}),
        record("probe_top1", 0.8, "probing", spread=(0.7, 0.9)),
        record("probe_top1_random", 0.6, "probing"),
        record("co_firing_cosine", 0.1, "geometry"),
        record("independent_cosine", 0.05, "geometry"),
        record("loss_recovered", None, "loss_recovered", note="skipped"),
        record("dead_fraction", math.inf, "sparsity"),
    ]


NAMED = {"a": records(0.0), "b": records(0.05)}


def test_trade_offs_are_drawn_with_their_intervals() -> None:
    (panel,) = trade_offs(NAMED)
    assert panel.rows == (("a", 30.0, 0.2), ("b", 30.05, 0.25))
    low_high = panel.data[0]["error_y"]
    assert low_high["array"] == pytest.approx([0.2]) and low_high["arrayminus"] == pytest.approx([0.1])
    assert panel.figure.layout.title.text == "fvu over L0"


@pytest.mark.parametrize("n", [1, 2, 33, 34, 65, 66, 67, 99, 1000])
def test_curves_are_thinned_but_keep_their_ends(n: int) -> None:
    series = {"quantile": list(range(n)), "l0": [1.0] * n}
    (panel,) = curves({"a": [record("l0_mean", 3.0, series=series)]})
    x = panel.data[0]["x"]
    assert len(x) == n if n <= 33 else 16 < len(x) <= 33
    assert x[0] == 0 and x[-1] == float(f"{n - 1:.5g}")


def test_scores_stand_beside_their_floors() -> None:
    probe, co_firing = scores(NAMED)
    assert probe.rows[0] == ("a", 0.8, 0.7, 0.9, 0.6)
    assert co_firing.rows[0] == ("a", 0.1, "-", "-", 0.05)
    assert co_firing.data[1]["x"] == [0.05, 0.05]


def test_the_floor_of_an_auc_is_a_half() -> None:
    (panel,) = scores({"a": [record("ngram_fuzzing", 0.7, "interpretability", unit="AUC", spread=(0.6, 0.8))]})
    assert panel.rows == (("a", 0.7, 0.6, 0.8, 0.5),) and panel.data[1]["x"] == [0.5]


def test_curves_leave_out_what_a_logarithmic_axis_cannot_show() -> None:
    position, densities = curves(NAMED)
    line = position.data[0]
    assert (line["name"], line["x"], line["y"]) == ("a", [0, 1], [0.3, 0.1])
    assert densities.data[0]["x"] == [1, 10]


def test_the_table_has_every_figure_once() -> None:
    table = figure_table(NAMED | {"c": [record("fvu", 0.5)]})
    assert table.columns == ("figure", "a", "b", "c", "unit")
    assert table.rows[0] == ("reconstruction",)
    assert table.rows[1] == ("fvu", "0.2 [0.1, 0.4]", "0.25 [0.15, 0.45]", "0.5", "fraction")
    names = [row[0] for row in table.rows]
    assert len(names) == len(set(names)) and "loss_recovered" not in names


def test_a_page_without_figures_has_no_empty_sections(tmp_path: Path) -> None:
    comparison_page({"a": [record("fvu", 0.5)]}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<section") == 1 and "Every figure" in text
    assert len(text.encode()) < 5_000_000


def test_text_is_wrapped_column_by_column_and_a_note_stands_below(tmp_path: Path) -> None:
    table = Table(("a", "b", "c"), (("x", "1", "words " * 20), ("y", "2", "few")), "What it **says**.")
    report_page("t", [], [Section("s", tables=(table,))], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert '<td>2</td><td class="sae-report-text">few</td>' in text
    assert "</table></div><p>What it <b>says</b>.</p>" in text


# --- in a browser -------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_page_draws_its_charts(watched: Any, tmp_path: Path) -> None:
    comparison_page(NAMED, tmp_path / "page.html")
    page = watched.page
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector(".sae-plot .main-svg")
    assert page.locator(".sae-report-section").count() == 4
    page.locator(".sae-chart").last.scroll_into_view_if_needed()
    page.wait_for_selector(".sae-plot:not(:has(.main-svg))", state="detached")
    page.click("text=Numbers >> nth=0")
    page.locator(".sae-numbers").first.wait_for()  # filled once the browser has told that it is open
    assert page.locator(".sae-numbers tr").count() == 3
    page.click("text=Numbers >> nth=-1")
    page.locator(".sae-numbers").nth(1).wait_for()
    assert page.locator(".sae-numbers").last.locator("td").all_text_contents()[:3] == ["a", "1", "0.5"]
    watched.check()


@pytest.mark.browser
def test_names_beside_scores_are_not_cut_off(watched: Any, tmp_path: Path) -> None:
    comparison_page({"variational, as released (L0 32)": records(0.0), "b": records(0.1)}, tmp_path / "page.html")
    page = watched.page
    page.goto((tmp_path / "page.html").as_uri())
    chart = page.locator(".sae-chart", has_text="probe_top1")
    chart.scroll_into_view_if_needed()
    label = chart.locator(".ytick", has_text="released")
    label.wait_for()
    assert label.bounding_box()["x"] >= chart.bounding_box()["x"]
    watched.check()


@pytest.mark.browser
def test_a_click_on_a_heading_sorts_the_rows(watched: Any, tmp_path: Path) -> None:
    rows = (("a", "10 (9 to 11)"), ("b", "-"), ("c", "2"), ("d", "1,000"))
    sections = [Section("s", tables=(Table(("name", "value"), rows), Table(("name", "value"), (("group",), *rows))))]
    report_page("t", [], sections, tmp_path / "page.html")
    page = watched.page
    page.goto((tmp_path / "page.html").as_uri())
    buttons = page.locator("thead button")
    assert buttons.count() == 2, "a table with headings keeps its order"
    for order in (["c", "a", "d", "b"], ["d", "a", "c", "b"]):
        buttons.last.click()
        assert page.locator("tbody").first.locator("th").all_text_contents() == order
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    watched.check()


@pytest.mark.browser
def test_hostile_names_are_shown_and_never_run(watched: Any, tmp_path: Path) -> None:
    sections = [
        Section(text, (text,), tuple(trade_offs({text: records(0.0)})), (Table((text,), ((text,),)),))
        for text in PAYLOADS
    ]
    report_page(PAYLOADS[0], [(text, text) for text in PAYLOADS], sections, tmp_path / "page.html")
    page = watched.page
    page.goto((tmp_path / "page.html").as_uri())
    for chart in (page.locator(".sae-chart").first, page.locator(".sae-chart").last):
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
    assert page.locator("h2").all_text_contents()[:2] == PAYLOADS[:2]
    assert page.locator("h2").count() == len(PAYLOADS)
    watched.check()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_hangs_over_the_edge(browser: Any, tmp_path: Path, width: int) -> None:
    long = {f"runs/with/a/very/long/name/of-a-run-{i}-l0_32": records(i / 10) for i in range(12)}
    comparison_page(long, tmp_path / "page.html")
    context = browser.new_context(viewport={"width": width, "height": 850})
    page = context.new_page()
    page.set_default_timeout(90_000)  # a loaded machine is slow, not wrong
    page.goto((tmp_path / "page.html").as_uri())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_selector(".sae-plot .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


@pytest.mark.browser
def test_axe_core_finds_nothing_serious(browser: Any, tmp_path: Path) -> None:
    comparison_page(NAMED, tmp_path / "page.html")
    viewport = {"width": 1280, "height": 900}
    context = browser.new_context(bypass_csp=True, viewport=viewport, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(90_000)  # a loaded machine is slow, not wrong
    page.goto((tmp_path / "page.html").as_uri())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_selector(".sae-plot .main-svg")
        assert serious(page) == [], scheme
    context.close()
