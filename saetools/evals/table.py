"""Records as a plain text table."""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from saetools.records import EvalRecord

WIDTH = 110


def table(records: Sequence[EvalRecord], title: str = "evaluation on held-out data") -> str:
    """One line per record: name, value, 95 % interval over documents, unit, n; notes below the lines they belong to."""
    made = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column, side in (("name", "left"), ("value", "right"), ("95 % interval", "left"), ("unit", "left")):
        made.add_column(column, justify=side, no_wrap=column != "unit")  # type: ignore[arg-type]
    made.add_column("n", justify="right", no_wrap=True)
    for record in records:
        made.add_row(
            record.name,
            "-" if record.value is None else number(record.value),
            "" if record.spread is None else f"{number(record.spread[0])} .. {number(record.spread[1])}",
            record.unit,
            f"{record.n:,} {record.n_unit}",
        )
    text = io.StringIO()
    Console(file=text, width=WIDTH, markup=False, highlight=False, color_system=None).print(made)
    notes = [f"{record.name}: {record.note}" for record in records if record.note]
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def number(value: float) -> str:
    """Four significant digits, plain where that is short."""
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.3e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
