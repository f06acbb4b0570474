"""A dictionary in a few words, for the console and for notebooks."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saetools.dictionaries.base import Dictionary

MAX_FACTS = 40
MAX_CHARACTERS = 120


def description(dictionary: "Dictionary") -> dict[str, str]:
    """Name and value of what a reader wants to know: kind, sizes, settings, host and point, how it was trained."""
    facts: dict[str, object] = {"kind": dictionary.kind, "D": dictionary.d_model, "F": dictionary.config.n_features}
    settings = dictionary.config.model_dump(mode="json", exclude={"kind", "n_features"})
    facts |= {name: value for name, value in settings.items() if value is not None}
    if dictionary.spec is not None:
        facts |= {"host": dictionary.spec.host, "point": dictionary.spec.point}
    facts |= {f"trained: {name}": value for name, value in dictionary.provenance.items() if _is_plain(value)}
    return {name: _shortened(value) for name, value in list(facts.items())[:MAX_FACTS]}


def html_table(title: str, facts: Mapping[str, str]) -> str:
    """A small table with everything escaped; under 20 KB whatever the facts are."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
