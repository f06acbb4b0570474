"""A rule over sources: nothing takes text for markup or code, and no page asks another machine for anything."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "saetools" / "dashboard"
SCRIPTS = sorted((DASHBOARD / "assets").glob("*.js"))
MODULES = sorted(DASHBOARD.rglob("*.py"))
PAGES = sorted([*(DASHBOARD / "assets").glob("*.html"), *(ROOT / "analysis").glob("*.html")])
SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|createContextualFragment|DOMParser|document\.write|srcdoc"
    r"|\beval\b|new Function|javascript:|\bimport\(|setAttribute\(\s*[\"'`](?:on|href|src|style)|\.on[a-z]+\s*="
    r"|set(?:Timeout|Interval)\(\s*[\"'`]|\.href\s*=(?!\s*`#\$\{)|https?://(?!www\.w3\.org/2000/svg)"
)
DANGEROUS = re.compile(
    r"DangerouslySetInnerHTML|dangerously_allow_(?:html|code)(?!=False)|dcc\.Markdown|html\.Iframe|html\.Script|Markup\("
    r"|render_template_string|include_plotlyjs|cdn"
)
CASES = [
    "node.innerHTML = text", "x.outerHTML=1", "setTimeout('a()')", "eval(x)", "link.href = text", "n.onclick = f",
    "fetch('https://cdn.test')", "a.setAttribute('onclick', t)", "import('x')",
]  # fmt: skip


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_write_text_alone(path: Path) -> None:
    assert not [line for line in path.read_text(encoding="utf-8").splitlines() if SINKS.search(line)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_hand_over_no_markup(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    allowed = {"figure.py": ("CDN", "cdn")}.get(path.name, ())  # which says what it takes out
    assert not [line for line in lines if DANGEROUS.search(line) and not any(word in line for word in allowed)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_ask_no_other_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|img|iframe|link|source|use)[^>]+(?:src|href)=[\"']?(?:https?:)?//[^>]*>", text)
    assert "Content-Security-Policy" in text or path.name == "help.html"


@pytest.mark.parametrize("line", CASES)
def test_the_rule_sees_what_it_is_for(line: str) -> None:
    assert SINKS.search(line)
