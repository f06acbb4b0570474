"""Training curves of a run, read from its metrics.jsonl while it is being written. No torch here."""

import json
import math
from pathlib import Path
from typing import Any

from saetools.dashboard.panel import NEGATIVE, Panel, layout, number
from saetools.errors import FormatError

CURVES: tuple[tuple[str, str, bool], ...] = (
    ("loss", "Loss", True),
    ("l0", "L0: features per token", False),
    ("dead_fraction", "Dead fraction", False),
    ("lr", "Learning rate", False),
    ("grad_norm", "Gradient norm", True),
)
"""(key of metrics.jsonl, title, whether its axis is logarithmic)."""

MAX_POINTS = 2000


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; a last line that is still being written is left out.

    Raises FormatError where the file is missing or another line is not JSON.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"cannot read the curves of a run, {path}: {error.strerror or error}.") from error
    lines = text.split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise FormatError(f"{path} has a line that is not JSON: {error}.") from error


def training_curves(records: list[dict[str, Any]]) -> list[Panel]:
    """One panel per curve that the records have, over tokens; at most 2,000 points each, evenly spaced."""
    step = max(1, math.ceil(len(records) / MAX_POINTS))
    kept = records[::step] + (records[-1:] if records and (len(records) - 1) % step else [])
    return [_curve(kept, key, title, log) for key, title, log in CURVES if any(key in record for record in kept)]


def _curve(records: list[dict[str, Any]], key: str, title: str, log: bool) -> Panel:
    points = [(record["n_tokens"], _finite(record.get(key))) for record in records]
    rows = tuple((tokens, value) for tokens, value in points if value is not None)
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [tokens for tokens, _ in rows],
        "y": [value for _, value in rows],
        "line": {"color": NEGATIVE, "width": 2},
        "hovertemplate": "%{x:,} tokens<br>%{y:.4g}<extra></extra>",
    }
    kind = "log" if log and all(value > 0 for _, value in rows) else "linear"
    shape = layout("tokens", "", y={"rangemode": "normal", "type": kind})
    last = f"{title}: {number(rows[-1][1])} at {rows[-1][0]:,} tokens" if rows else title
    return Panel(last, [line], shape, ("tokens", title), rows)


def _finite(value: Any) -> float | None:
    """The number, or None for what JSON holds as a string (nan, inf) or not at all."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
