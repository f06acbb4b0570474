"""Training curves of a run, read from its metrics.jsonl while it is being written. No torch here."""

import json
import math
from pathlib import Path
from typing import Any

from saetools.dashboard.panel import NEGATIVE, POSITIVE, Panel, layout, number
from saetools.errors import FormatError

CURVES: tuple[tuple[str, str, bool], ...] = (
    ("loss", "Loss", True),
    ("l0", "L0, features per token", False),
    ("dead_fraction", "Dead fraction", False),
    ("lr", "Learning rate", False),
    ("grad_norm", "Gradient norm", True),
)
"""(key of metrics.jsonl, title, whether its axis is logarithmic where its values are WIDE apart)."""

WIDE = 5
"""Greatest over least value from which on at least two of 1, 2 and 5 times a power of ten lie between them."""

MAX_POINTS = 2000
LINES = (NEGATIVE, POSITIVE, "#7a6a9a", "#4d8a6a")
LEGEND = {"orientation": "h", "y": 1.22, "x": 0}


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; a last line that is still being written is left out.

    Raises FormatError where the file is missing or another line is not JSON.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or error
        raise FormatError(f"cannot read the curves of a run, {path}: {cause}.") from error
    lines = text.split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise FormatError(f"{path} has a line that is not JSON: {error}.") from error


def training_curves(records: list[dict[str, Any]]) -> list[Panel]:
    """One panel per curve that the records have, over tokens; at most 2,000 points each, evenly spaced.

    The first shows the weighted loss and, where there are several, its terms before their weights.
    """
    step = max(1, math.ceil(len(records) / MAX_POINTS))
    kept = records[::step] + (records[-1:] if records and (len(records) - 1) % step else [])
    panels = []
    for key, title, log in CURVES:
        if any(key in record for record in kept):
            names = [key, *_terms(kept)] if key == "loss" else [key]
            panels.append(_curve({name: _points(kept, name) for name in names}, key, title, log))
    return panels


def _terms(records: list[dict[str, Any]]) -> list[str]:
    """Names of the loss terms that are not zero throughout, where there are several."""
    names = dict.fromkeys(name for record in records for name in record if name.startswith("loss/"))
    moving = [name for name in names if any(value for _, value in _points(records, name))]
    return moving if len(moving) > 1 else []


def _points(records: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    found = [(record["n_tokens"], _finite(record.get(key))) for record in records]
    return [(tokens, value) for tokens, value in found if value is not None]


def _curve(series: dict[str, list[tuple[int, float]]], key: str, title: str, log: bool) -> Panel:
    lines = [
        {
            "type": "scatter",
            "mode": "lines" if len(points) > 1 else "markers",
            "name": name.removeprefix("loss/"),
            "x": [tokens for tokens, _ in points],
            "y": [value for _, value in points],
            "line": {"color": LINES[index % len(LINES)], "width": 2, "dash": "dot" if index else "solid"},
            "hovertemplate": "%{x:,} tokens<br>%{y:.4g}<extra></extra>",
        }
        for index, (name, points) in enumerate(series.items())
    ]
    own = series[key]
    values = [value for _, value in own]
    is_log = log and bool(values) and min(values) > 0 and max(values) >= WIDE * min(values)
    y: dict[str, Any] = {"type": "log" if is_log else "linear", "rangemode": "normal" if log else "tozero"}
    y["tickformat"] = "~g"
    if is_log:
        y["dtick"] = "D2" if max(values) / min(values) < 100 else 1  # 1, 2, 5 of a decade, or powers of ten alone
    note = f"{number(own[-1][1])} at {own[-1][0]:,} tokens" if own else ""
    shape = layout("tokens", "", {"tickformat": "~s"}, y)
    if len(lines) > 1:
        shape |= {"showlegend": True, "legend": LEGEND, "margin": {**shape["margin"], "t": 26}}
    return Panel(title, lines, shape, ("tokens", title), tuple(own), note)


def _finite(value: Any) -> float | None:
    """The number, or None for what JSON holds as a string (nan, inf) or not at all."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
