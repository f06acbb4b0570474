"""Records as a plain text table."""

import io
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from saetools.errors import printable
from saetools.records import EvalRecord

WIDTH, UNIT_WIDTH = 110, 24
"""Of a table, and of its column of units, whose lines are wrapped: at least."""


def table(records: Sequence[EvalRecord], title: str = "evaluation on held-out data") -> str:
    """One line per record: name, value, 95 % interval, unit, n; below them all each note with the figures it is of."""
    columns = [("name", "left"), ("value", "right"), ("95 % interval", "left"), ("unit", "left"), ("n", "right")]
    rows = [
        [
            record.name,
            "-" if record.value is None else number(record.value),
            "" if record.spread is None else f"{number(record.spread[0])} .. {number(record.spread[1])}",
            record.unit,
            f"{record.n:,} {record.n_unit}",
        ]
        for record in records
    ]
    names: dict[str, list[str]] = {}
    for record in records:
        if record.note:
            names.setdefault(record.note, []).append(record.name)
    notes = [printable(f"{', '.join(of)}: {note}") for note, of in names.items()]
    return "\n".join([plain_table(title, columns, rows), *([""] if notes else []), *notes])


def plain_table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text without colours or rules; columns are (heading, `left` or `right`)."""
    made = Table(title=printable(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading, side in columns:
        made.add_column(printable(heading), justify=side, no_wrap=heading != "unit")  # type: ignore[arg-type]
    for row in rows:
        made.add_row(*map(printable, row))
    text = io.StringIO()
    cells = [[heading for heading, _ in columns], *rows]
    widths = [max(cell_len(printable(row[i])) for row in cells) for i in range(len(columns))]
    others = sum(2 + w for w, (heading, _) in zip(widths, columns, strict=True) if heading != "unit")
    width = max(WIDTH, others + UNIT_WIDTH)  # else columns would be cut, or left out
    plain: dict[str, Any] = {"markup": False, "highlight": False, "color_system": None, "force_jupyter": False}
    Console(file=text, width=width, **plain).print(made)  # in a notebook rich would show it instead of writing it
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def number(value: float) -> str:
    """Four significant digits or so, plain where that is short."""
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.3e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
