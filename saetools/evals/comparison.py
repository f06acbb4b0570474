"""Several dictionaries side by side: one row per figure, one column per dictionary."""

import csv
import io
from collections.abc import Mapping, Sequence

from saetools.evals.table import number, plain_table
from saetools.records import EvalRecord

Named = Mapping[str, Sequence[EvalRecord]]
"""Name of a dictionary -> its records."""
UNLIKE = (
    "\n* not judged on the same held-out rows, or not with the same settings, for all: evaluate them alike to compare"
)


def comparison_table(named: Named) -> str:
    """A plain text table of every figure that any dictionary has, in the order of first mention; `-` where missing.

    A figure that was not judged on the same rows and with the same settings for all is marked with a star.
    """
    columns = [("figure", "left"), *((name, "right") for name in named), ("unit", "left")]
    rows = []
    for figure, unit in _figures(named):
        values = [_value(records, figure) for records in named.values()]
        star = "" if _alike(named, figure) else "*"
        rows.append([figure + star, *("-" if value is None else number(value) for value in values), unit])
    starred = any(row[0].endswith("*") for row in rows)
    return plain_table("comparison on held-out data", columns, rows) + (UNLIKE if starred else "")


def _alike(named: Named, figure: str) -> bool:
    """Whether all dictionaries that have the figure were judged on the same rows with the same settings."""
    found = [r for records in named.values() for r in records if r.name == figure and r.value is not None]
    return all((r.heldout, r.config) == (found[0].heldout, found[0].config) for r in found)


def comparison_csv(named: Named) -> str:
    """One line per dictionary and figure: dictionary, figure, value, low, high, unit, n, n_unit; full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dictionary", "figure", "value", "low", "high", "unit", "n", "n_unit"])
    for name, records in named.items():
        for r in records:
            low, high = r.spread or (None, None)
            writer.writerow([name, r.name, r.value, low, high, r.unit, r.n, r.n_unit])
    return text.getvalue()


def _figures(named: Named) -> list[tuple[str, str]]:
    """(figure, unit) of every figure with a value somewhere; what evaluations cost is left out."""
    found: dict[str, str] = {}
    for records in named.values():
        for record in records:
            if record.value is not None and not record.name.startswith("cost_"):
                found.setdefault(record.name, record.unit)
    return list(found.items())


def _value(records: Sequence[EvalRecord], figure: str) -> float | None:
    return next((record.value for record in records if record.name == figure), None)
