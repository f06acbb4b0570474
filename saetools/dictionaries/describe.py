"""A dictionary in a few words, for the console and for notebooks."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saetools.dictionaries.base import Dictionary

MAX_FACTS = 40
MAX_CHARACTERS = 120
MAX_BYTES = 20_000
"""Of a table in a notebook, which stands in the file of the notebook for ever."""


def description(dictionary: "Dictionary") -> dict[str, str]:
    """Name and value of what a reader wants to know: kind, sizes, settings, host and point, how it was trained."""
    facts: dict[str, object] = {"kind": dictionary.kind, "D": dictionary.d_model, "F": dictionary.config.n_features}
    settings = dictionary.config.model_dump(mode="json", exclude={"kind", "n_features"})
    facts |= {name: value for name, value in settings.items() if value is not None}
    if dictionary.spec is not None:
        facts |= {"host": dictionary.spec.host, "point": dictionary.spec.point}
    facts |= {f"trained: {name}": value for name, value in dictionary.provenance.items() if _is_plain(value)}
    return {_shortened(name): _shortened(value) for name, value in list(facts.items())[:MAX_FACTS]}


def html_table(title: str, facts: Mapping[str, str]) -> str:
    """A small table with everything escaped; at most 20 KB of UTF-8 whatever the facts are: the first that fit."""
    head, tail = f"<table><caption>{escape(title)}</caption>", "</table>"
    left = MAX_BYTES - len(head + tail) - 60  # the last row, where some are left out
    rows: list[str] = []
    for name, value in facts.items():
        row = f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        left -= len(row.encode())
        if left < 0:
            rows.append(f"<tr><td colspan='2'>and {len(facts) - len(rows)} more</td></tr>")
            break
        rows.append(row)
    return "".join([head, *rows, tail])


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _shortened(value: object) -> str:
    text = str(value).encode("utf-8", "replace").decode()  # json can name halves of characters
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
