"""Which features a table shows, as SQL. Names come from our own constants; whatever a user gives is a bound value."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saetools.errors import DataError, nearest
from saetools.features.schema import SORTABLE

BOUND = re.compile(r"(\w+)(<=|>=|<|>)(-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)")
BOUNDED = {name: name for name in SORTABLE} | {"max": "max_value", "fires": "count", "contexts": "n_contexts"}
"""The column that a name stands for in a bound such as max<=5; pages know the same."""
SPACED = re.compile(rf"(?<!\S)({'|'.join(BOUNDED)})\s*(<=|>=|<|>)\s*(?=[-.\d])")
"""A bound written with spaces, up to its number."""

MOST_WORDS = 200
"""Of a search: SQLite's expressions nest a thousand deep at most."""
LONGEST_NUMBER = 19
"""Digits from which on a number is no feature's: SQLite holds no greater ones, and Python none of 4,300 digits."""

FOLDED = "folded"
"""A function of the store's connection: SQLite's own lower() knows no letters but those of ASCII."""


@dataclass(frozen=True)
class Filter:
    """Which features a table shows; all conditions hold."""

    text: str = ""  # words that begin in labels, notes, logit tokens or top contexts; signs without a letter or digit
    #                 that stand in the top token or logit; one number is that feature; density>0.01, max<=5 and the
    #                 like hold of a column
    features: Sequence[int] | None = None


def conditions(wanted: Filter, has_annotations: bool) -> tuple[str, list[Any]]:
    """The WHERE clause of a filter, with its values. DataError at an unknown column."""
    clauses: list[str] = []
    values: list[Any] = []
    if wanted.features is not None:
        clauses.append("features.feature IN (SELECT value FROM json_each(?))")
        values.append(json.dumps([int(feature) for feature in wanted.features]))
    words, given = [], SPACED.sub(r"\1\2", wanted.text).split()
    if len(given) > MOST_WORDS:
        raise DataError(f"a search has at most {MOST_WORDS} words and bounds, not {len(given):,}.")
    for word in given:
        found = BOUND.fullmatch(word)
        if found and found[1] in BOUNDED:
            clauses.append(f"features.{BOUNDED[found[1]]} {found[2]} ?")
            values.append(float(found[3]))
        else:
            words.append(word)
    if len(words) == 1 and words[0].isdecimal():
        clauses.append("features.feature = ?")
        values.append(int(words[0]) if len(words[0]) < LONGEST_NUMBER else -1)
    elif words:
        clause, bound_words = _words(words, has_annotations)
        clauses.append(clause)
        values += bound_words
    return " AND ".join(clauses) or "1", values


def _words(words: list[str], has_annotations: bool) -> tuple[str, list[str]]:
    """All words are found in the store, or all occur in label and note.

    Full-text search knows letters, digits and _ alone: a word without any is looked for as it is, where it tells
    features apart.
    """
    spelled = [word for word in words if re.search(r"\w", word)]
    signs = [word for word in words if word not in spelled]
    found, values = [], []
    if spelled:
        found.append("SELECT rowid FROM words WHERE words MATCH ?")
        values.append(" ".join('"' + word.replace('"', '""').replace("\0", "") + '"*' for word in spelled))
    if signs:
        there = " AND ".join(["(instr(peak_token, ?) OR instr(top_logit, ?))"] * len(signs))
        found.append(f"SELECT feature FROM features WHERE {there}")
        values += [sign for sign in signs for _ in range(2)]
    matching = " INTERSECT ".join(found)
    if has_annotations:
        pieces = " AND ".join([f"instr({FOLDED}(label || ' ' || note), {FOLDED}(?)) > 0"] * len(words))
        matching += f" UNION SELECT feature FROM notes.labels WHERE {pieces}"
        values += words
    return f"features.feature IN ({matching})", values


def checked_column(column: str) -> str:
    """The column itself where a table can be sorted by it; DataError with the nearest one otherwise."""
    if column not in SORTABLE:
        raise DataError(f"unknown column {column!r}.{nearest(column, SORTABLE)} Known: {', '.join(SORTABLE)}, label.")
    return column
