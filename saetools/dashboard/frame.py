"""A frame for a notebook's output: the pages' own scripts and style with the data, packed into at most 20 KB.

A notebook is a file of all its outputs, and each has to stand alone when it is opened again without a kernel. So every
frame carries what it needs, deflated; a browser unpacks it (DecompressionStream, in all of them since 2023). Of the
style it carries the rules that its scripts can ask for. It is sandboxed: nothing in it can reach the notebook, and its
policy lets it make no request. No torch here.
"""

import base64
import html
import json
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import Any

from saetools.dashboard.inline import asset, fill, policy

MOST_BYTES = 20_000
HEIGHT = 720
DIGITS = 4
"""Significant digits of numbers in a frame: as many as pages show."""

LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%,()*+-;.=/?@^_`{|}~"
"""Digits of base 85, a seventeenth shorter than base 64: Python's own, but for the three that HTML escapes."""
PACKED = str.maketrans("&<>", ",./")

UNPACK = """(async () => {
if (!window.DecompressionStream) {
  document.body.textContent = "This output needs a browser of 2023 or later.";
  return;
}
const letters = "LETTERS", text = document.getElementById("packed").textContent;
const bytes = new DataView(new ArrayBuffer(4 * Math.ceil(text.length / 5)));
for (let at = 0; at < text.length; at += 5) {
  let word = 0;
  for (const letter of text.slice(at, at + 5).padEnd(5, "~")) word = 85 * word + letters.indexOf(letter);
  bytes.setUint32(at / 5 * 4, word);
}
const packed = new Blob([bytes.buffer.slice(0, Math.floor(text.length / 5 * 4))]);
const stream = packed.stream().pipeThrough(new DecompressionStream("deflate"));
const [style, script, view] = (await new Response(stream).text()).split("\\0");
window.view = JSON.parse(view);
for (const [name, text] of [["style", style], ["script", script]]) {
  const node = document.createElement(name);
  node.textContent = text;
  document.head.append(node);
}
})();""".replace("LETTERS", LETTERS)
FRAME = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>saetools</title>
<meta http-equiv="Content-Security-Policy" content="{{policy}}"></head>
<body><main><div class="sae-feature-head"><h2>{{title}}</h2><span class="sae-note">{{note}}</span></div>
<div id="root" class="sae-feature"></div></main>
<script type="text/plain" id="packed">{{packed}}</script><script>{{unpack}}</script></body></html>"""


def frame(title: str, view: Any, scripts: Sequence[str], draw: str, note: str = "") -> str:
    """HTML of a frame: `draw`, after these scripts of the pages, draws `view` into the element `root`.

    `note` stands beside the title. The caller leaves out of the view what would make it longer than MOST_BYTES.
    """
    style, script = _code(tuple(scripts), draw)
    text = "\0".join((style, script, json.dumps(_rounded(view), separators=(",", ":"), allow_nan=False)))
    document = fill(
        FRAME,
        policy=policy([UNPACK, script]),
        title=html.escape(title),
        note=html.escape(note),
        packed=base64.b85encode(zlib.compress(text.encode(), 9)).decode().translate(PACKED),
        unpack=UNPACK,
    )
    return (
        f'<iframe sandbox="allow-scripts" title="{html.escape(title)}" width="100%" height="{HEIGHT}" '
        f'style="border:0" srcdoc="{html.escape(document)}"></iframe>'
    )


@cache
def _code(scripts: tuple[str, ...], draw: str) -> tuple[str, str]:
    """(style, script) of a frame."""
    parts = "\n".join(_without_comments(asset(name)) for name in scripts)
    script = f'{parts}\n(() => {{ const root = document.getElementById("root"), view = window.view; {draw} }})();'
    style = re.sub(r"\s+", " ", re.sub(r"/\*.*?\*/", "", asset("style.css"), flags=re.DOTALL))
    return "".join(_rules(style, set(re.findall(r"sae-[a-z-]+", script + FRAME)))), script


def _without_comments(script: str) -> str:
    """A script of ours without the comments that have lines of their own, and without indentation."""
    bare = re.sub(r"^[ \t]*/\*.*?\*/[ \t]*$", "", script, flags=re.MULTILINE | re.DOTALL)
    lines = (line.strip() for line in bare.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _rules(style: str, known: Collection[str]) -> Iterator[str]:
    """The rules with a selector that names no class of ours but the known ones; of groups those with such rules."""
    for head, body in _blocks(style):
        inside = "".join(_rules(body, known)) if head.startswith("@media") else body
        if inside and any(set(re.findall(r"\.(sae-[a-z-]+)", part)) <= set(known) for part in head.split(",")):
            yield f"{head}{{{inside}}}"


def _blocks(style: str) -> Iterator[tuple[str, str]]:
    """(what stands before the braces, what stands in them) of each outermost block."""
    depth = start = opened = 0
    for brace in re.finditer("[{}]", style):
        depth += 1 if brace[0] == "{" else -1
        if depth == 1 and brace[0] == "{":
            opened = brace.start()
        elif depth == 0:
            yield style[start:opened].strip(), style[opened + 1 : brace.start()].strip()
            start = brace.end()


def _rounded(value: Any) -> Any:
    """The same data with `DIGITS` significant digits."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
