"""Hostile text in what is no page of ours: plotly's figures as SVG and PNG, the terminal, wandb."""

import html
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fixture_store import write_fixture
from payloads import PAYLOADS

from saetools.cli import main
from saetools.config import LoggingConfig
from saetools.dashboard.figure import SHOWN
from saetools.dashboard.inline import plotly_script
from saetools.dashboard.notebook import Explorer
from saetools.dashboard.panel import INVISIBLE, plain, visible
from saetools.dashboard.panels import firings_heatmap, logits_bars
from saetools.errors import DataError, printable
from saetools.evals.table import plain_table
from saetools.features.records import FeatureRecord, LogitEffect, PromptFirings, TokenWeight
from saetools.features.store import FeatureStore
from saetools.training.mirror import Mirror

ESCAPES = [
    *PAYLOADS,
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[1;1H",
    "\x9b31m",
    "[bold red]x[/]",
    "[link=http://evil.test]x[/link]",
]
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What a page fetches as it opens. Plotly's own script names more: tiles and icons of maps, which are not drawn.
LOADED = re.compile(r"""<(script|link|img|iframe)\b[^>]*\b(src|href)=.?https?:|import\W{1,3}https?:""", re.IGNORECASE)


def hostile_figures() -> list[dict[str, Any]]:
    """Every kind of figure that has text of others in it, with all payloads."""
    weights = tuple(TokenWeight(token=text[:200], weight=1.0) for text in PAYLOADS)
    record = FeatureRecord(feature=0, count=1, density=0.1, logits=LogitEffect(top=weights, bottom=weights[:1]))
    tokens = tuple(text[:200] for text in PAYLOADS)
    firings = PromptFirings(tokens, ((3, ((0, 1.0),)),))
    figures = [logits_bars(record).figure, firings_heatmap(firings, 5).figure]
    return [json.loads(figure.to_json()) for figure in figures]


@pytest.mark.browser
@pytest.mark.slow
def test_svg_and_png_hold_text_alone(watched: Any, tmp_path: Path) -> None:
    """Drawn by plotly without any policy that could save it, then opened as an SVG document of its own."""
    page = watched.page
    (tmp_path / "plotly.js").write_text(plotly_script(), encoding="utf-8")
    (tmp_path / "page.html").write_text("<!doctype html><meta charset=utf-8><script src=plotly.js></script>")
    page.goto((tmp_path / "page.html").as_uri())
    for number, figure in enumerate(hostile_figures()):
        svg, png = page.evaluate(
            """async ([figure, config]) => {
                const node = document.createElement("div");
                document.body.append(node);
                await Plotly.newPlot(node, figure.data, { ...figure.layout, width: 4000, height: 2500 }, config);
                const [svg, png] = await Promise.all(["svg", "png"].map((format) => Plotly.toImage(node, { format })));
                return [decodeURIComponent(svg.replace(/^data:image\\/svg\\+xml,/, "")), png];
            }""",
            [figure, SHOWN],
        )
        assert png.startswith("data:image/png;base64,")
        assert page.locator("a, img, iframe, b, svg script").count() == 0
        file = tmp_path / f"{number}.svg"
        file.write_text(svg, encoding="utf-8")
        page.goto(file.as_uri())
        names = "[...new Set([...document.querySelectorAll('*')].map(node => node.localName))]"
        assert not {"script", "foreignObject", "a", "iframe"} & set(page.evaluate(names))
        attributes = page.evaluate(
            """[...document.querySelectorAll('*')].flatMap(node => node.getAttributeNames()
               .filter(name => name.startsWith("on") || name.includes("href"))
               .map(name => [node.localName, node.getAttribute(name).slice(0, 15)]))"""
        )
        assert all(found == ["image", "data:image/png;"] for found in attributes)  # the cells of a heat map
        shown = set(page.evaluate("[...document.querySelectorAll('text')].map(node => node.textContent)"))
        for text in PAYLOADS:
            if text.isprintable() and text.isascii() and len(text) <= 200:
                assert text.replace("%{", "%\u200b{") in shown or visible(text) in shown, text
        page.goto((tmp_path / "page.html").as_uri())
    watched.check()


def test_plotly_is_given_no_markup() -> None:
    for text in PAYLOADS:
        assert not set("<>$") & set(plain(text)) and "%{" not in plain(text)
        if "%{" not in text and text.isprintable():
            assert html.unescape(plain(text)) == text
        assert not INVISIBLE.search(plain(text).replace("%\u200b{", "%{")) and plain(text).encode()


def test_terminals_are_given_nothing_that_they_obey(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from saetools import cli

    def fail(*_: Any) -> None:
        raise DataError(text)

    for text in ESCAPES:
        assert not OBEYED.search(printable(text)) and printable(text).encode()
        assert printable(printable(text)) == printable(text)
        monkeypatch.setattr(cli, "_doctor", fail)
        assert main(["doctor"]) == 2
        told = capsys.readouterr().err
        assert not OBEYED.search(told) and printable(text).strip() in told
        assert cli._PlainFormatter("%(message)s").format(logging.makeLogRecord({"msg": text})) == printable(text)
    assert printable("plain é 日本 [bold]\n\t") == "plain é 日本 [bold]\n\t"


def test_tables_on_terminals_show_text_verbatim() -> None:
    texts = [text for text in ESCAPES if text.strip() and len(text) < 60]
    told = plain_table("title", [("name", "left"), ("value", "right")], [[text, "1"] for text in texts])
    assert not OBEYED.search(told)
    for text in texts:
        if text.isprintable() and text.isascii():
            assert text in told


def test_a_directory_with_a_hostile_name(tmp_path: Path) -> None:
    """Told by a process of its own, where nothing but the command line writes."""
    path = tmp_path / "\x1b[31mred\u202e[bold]"
    command = [sys.executable, "-m", "saetools.cli", "dashboard", str(path), "--export", "page.html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 2 and "\\x1b[31mred\\u202e[bold]" in done.stderr
    assert not OBEYED.search(done.stdout + done.stderr)


def test_wandb_is_given_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and settings go to wandb as the strings that they are; nothing is handed over as HTML or markdown."""
    given: list[Any] = []
    run = SimpleNamespace(log=lambda record, step: given.append(record), finish=lambda quiet: None)
    module = ModuleType("wandb")
    module.init = lambda **kwargs: given.append(kwargs) or run  # type: ignore[attr-defined]
    module.Settings = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    config = {"corpus": {"name": PAYLOADS}, "run": {"note": ESCAPES}}
    mirror = Mirror(LoggingConfig(wandb="offline"), tmp_path / "wandb", "id", config)
    mirror.log({"step": 1, **dict.fromkeys(PAYLOADS, 1.0)})
    mirror.close()
    assert given[0]["config"] == config and set(given[1]) == {"step", *PAYLOADS}
    plain_types = (str, int, float, bool, list, dict, type(None), SimpleNamespace)
    assert all(isinstance(value, plain_types) for entry in given for value in entry.values())


def test_notebook_figures_have_no_button_that_uploads(tmp_path: Path) -> None:
    import plotly.io as pio

    write_fixture(tmp_path / "features")
    explorer = Explorer(FeatureStore.open(tmp_path / "features"))
    before = pio.renderers.default
    try:
        pio.renderers.default = "plotly_mimetype+notebook"
        for shown in (explorer.density(), explorer.map().figure, explorer.table().figure):
            bundle = shown._repr_mimebundle_()
            for text in (json.dumps(bundle["application/vnd.plotly.v1+json"]["config"]), bundle["text/html"]):
                assert '"showSendToCloud": false' in text or '"showSendToCloud":false' in text
            assert not LOADED.search(bundle["text/html"])
    finally:
        pio.renderers.default = before
    figure = explorer.density().figure
    figure.write_html(tmp_path / "figure.html")
    for page in (figure.to_html(), (tmp_path / "figure.html").read_text(), figure._repr_html_()):
        assert '"showSendToCloud": false' in page and not LOADED.search(page)
