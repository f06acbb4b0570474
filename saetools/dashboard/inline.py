"""Putting text, data and scripts into one HTML file such that none of it is taken for something else. No torch here."""

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from saetools.dashboard.panel import CONFIG


def policy(scripts: Sequence[str], own_files: bool = False) -> str:
    """Content security policy: these scripts, known by their hash, and nothing else; no request to anywhere.

    `own_files` also lets in scripts that lie beside the page, on disk or on the page's own server.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    rules = {
        "default-src": "'none'",
        "script-src": f"{hashes} 'self' file:" if own_files else hashes,
        "style-src": "'unsafe-inline'",  # plotly writes style sheets
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def inline_json(value: Any) -> str:
    """JSON that is safe inside a script element: ASCII, and < > & as escapes, so that no text ends or opens one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data_element(name: str, value: Any) -> str:
    """An inert element that holds the value as JSON, found by its id."""
    return f'<script type="application/json" id="{name}">{inline_json(value)}</script>'


def packed(value: Any) -> str:
    """JSON as zlib in base64, a quarter of its size and free of markup; the pages' `unpack` inverts it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def packed_element(name: str, value: Any) -> str:
    """An inert element that holds the value packed, found by its id."""
    return f'<script type="text/plain" id="{name}">{packed(value)}</script>'


def fill(template: str, **parts: str) -> str:
    """The template with each {{name}} replaced once; what is put in is not looked at again."""
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def escaped(text: str) -> str:
    """Text as HTML; lone surrogates, which UTF-8 cannot hold, as question marks."""
    return html.escape(text).encode("utf-8", "replace").decode()


@cache
def asset(name: str) -> str:
    """The text of a file in dashboard/assets."""
    return (files("saetools.dashboard") / "assets" / name).read_text(encoding="utf-8")


@cache
def plotly_script() -> str:
    """plotly.js with our settings; line ends as an HTML parser makes them: the policy's hash is of what that reads."""
    script = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
    return f"{script}\nPlotly.setPlotConfig({json.dumps(CONFIG)});"
