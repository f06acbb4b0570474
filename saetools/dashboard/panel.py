"""A panel: what plotly draws, as plain data, with the same numbers as a table. No torch here.

Figures carry no background and no text colour: pages and notebooks bring their own. Plotly reads a few HTML tags in
text, so everything that comes from a corpus, a tokenizer or a person goes through `plain` first.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Characters without a shape, or that reorder others; token.js has the same."""
POSITIVE, NEGATIVE = "#c2620e", "#2f7ebc"
"""Orange and blue: told apart with every kind of colour vision, 3:1 against white and against near-black."""

CONFIG: Any = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "responsive": True,
    "displayModeBar": False,
}
"""Plotly's settings everywhere: no logo, nothing that could send a chart to a server."""


@dataclass(frozen=True)
class Panel:
    """A figure and the numbers behind it. Pages take the data as they are; `figure` is plotly's own object."""

    title: str
    data: list[dict[str, Any]] = field(repr=False)
    layout: dict[str, Any] = field(repr=False)
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...] = field(repr=False)
    note: str = ""  # shown beside the title, in smaller letters

    @property
    def figure(self) -> "go.Figure":
        """A plotly figure, checked by plotly: 20 ms, which pages do without."""
        from saetools.dashboard.figure import OfflineFigure

        margin = {**self.layout["margin"], "t": 64 if self.note else 48}
        title = {"text": plain(self.title), "subtitle": {"text": plain(self.note)}}
        return OfflineFigure(self.data, {**self.layout, "title": title, "margin": margin})

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> Any:
        """How a notebook shows it: as plotly shows the figure."""
        return self.figure._repr_mimebundle_(*args, **kwargs)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the pages' scripts."""
        return {
            "title": self.title,
            "note": self.note,
            "data": self.data,
            "layout": self.layout,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
        }


def side_by_side(panels: Sequence[Panel], columns: int = 2) -> "go.Figure":
    """Several panels as one plotly figure."""
    from plotly.subplots import make_subplots

    from saetools.dashboard.figure import OfflineFigure

    n_rows = max(1, -(-len(panels) // columns))
    titles = [plain(f"{panel.title}: {panel.note}" if panel.note else panel.title) for panel in panels]
    figure = OfflineFigure(make_subplots(n_rows, columns, subplot_titles=titles))
    for index, panel in enumerate(panels):
        row, column = index // columns + 1, index % columns + 1
        for trace in panel.figure.data:
            figure.add_trace(trace, row, column)
        figure.update_xaxes(panel.layout["xaxis"], row=row, col=column)
        figure.update_yaxes(panel.layout["yaxis"], row=row, col=column)
    figure.update_layout(height=60 + 240 * n_rows, showlegend=False)
    return figure


def layout(
    x_title: str, y_title: str, x: dict[str, Any] | None = None, y: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What all figures share: small margins, no ground of their own, axes that do not zoom by accident.

    `x` and `y` are further settings of the axes.
    """
    return {
        "margin": {"l": 48, "r": 12, "t": 8, "b": 40},
        "height": 190,
        "bargap": 0.06,
        "xaxis": {"title": _axis_title(x_title), "fixedrange": True, **(x or {})},
        "yaxis": {"title": _axis_title(y_title), "fixedrange": True, "rangemode": "tozero", **(y or {})},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def number(value: float | None) -> str:
    """At most four characters of precision, as a person reads it: 0.0123, 1.5e-06, 12.3; a dash for None."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.2g}"


def visible(text: str) -> str:
    """Text on one line: newlines, tabs, leading or trailing spaces and what has no shape as signs."""
    shown = _coded(text.replace("\n", "↵").replace("\r", "␍").replace("\t", "⇥"))
    core = shown.strip(" ")
    if not core:
        return "␣" * len(shown)
    start = len(shown) - len(shown.lstrip(" "))
    return "␣" * start + core + "␣" * (len(shown) - start - len(core))


def plain(text: str) -> str:
    """Text that plotly shows as it is: no tag, entity, formula or template in it is read, and SVG can hold it."""
    escaped = _coded(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("%{", "%\u200b{").replace("$", "&#36;")


def _coded(text: str) -> str:
    """Controls, zero-width and reordering characters and halves of surrogate pairs as [U+202E] and the like."""
    return INVISIBLE.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def _axis_title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 6, "font": {"size": 11}}
