"""Panels: pure functions from store records to plotly figures with the same numbers as a table. No torch here.

Figures carry no background and no text colour: pages and notebooks bring their own. Plotly reads a few HTML tags in
text, so everything that comes from a corpus, a tokenizer or a person goes through `plain` first.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go

from saetools.features.records import FeatureRecord, Histogram, TokenWeight, bin_edges
from saetools.features.store import FeatureStore

POSITIVE, NEGATIVE = "#c2620e", "#2f7ebc"
"""Orange and blue: told apart with every kind of colour vision, 3:1 against white and against near-black."""

DENSITY_BINS_PER_DECADE = 8
DENSITY_SCALE = [[0.0, "#a9cbe8"], [0.5, "#4b90cf"], [1.0, "#1c64ae"]]
MAX_MAP_POINTS, MAX_SVG_POINTS = 200_000, 3_000

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
    """A figure and the numbers behind it."""

    title: str
    figure: go.Figure
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> Any:
        """How a notebook shows it: as plotly shows the figure."""
        return self.figure._repr_mimebundle_(*args, **kwargs)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the pages' scripts."""
        figure = self.figure.to_plotly_json()
        return {
            "title": self.title,
            "data": [_plain_arrays(trace) for trace in figure["data"]],
            "layout": {key: value for key, value in figure["layout"].items() if key != "template"},
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
        }


def density_histogram(store: FeatureStore) -> Panel:
    """How many features fire how often: counts in log10 bins of density; features that never fire are in the title."""
    density = store.columns("density")["density"]
    alive = density[density > 0]
    title = f"Firing density ({len(density) - len(alive):,} of {len(density):,} features never fired)"
    lowest = math.floor(np.log10(alive.min())) if len(alive) else -1
    edges = np.linspace(lowest, 0, DENSITY_BINS_PER_DECADE * -lowest + 1) if lowest else np.array([-1.0, 0.0])
    counts, _ = np.histogram(np.log10(alive), edges)
    spans = [f"{number(10**low)} to {number(10**high)}" for low, high in pairwise(edges)]
    bar = go.Bar(
        x=((edges[1:] + edges[:-1]) / 2).tolist(),
        y=counts.tolist(),
        width=float(edges[1] - edges[0]),
        customdata=spans,
        hovertemplate="density %{customdata}<br>%{y} features<extra></extra>",
        marker_color=NEGATIVE,
    )
    figure = go.Figure(bar)
    ticks = list(range(lowest, 1))
    figure.update_layout(figure_layout("fraction of tokens at which a feature fires", "features"))
    figure.update_xaxes(tickvals=ticks, ticktext=[number(10.0**tick) for tick in ticks])
    return Panel(title, figure, ("density", "features"), tuple(zip(spans, counts.tolist(), strict=True)))


def activation_histogram(record: FeatureRecord) -> Panel:
    """The values of one feature where it fires, in log bins of magnitude; negative values are a second series."""
    histogram = record.histogram
    n_bins = max(len(histogram.positive), len(histogram.negative))
    edges = bin_edges()[histogram.first : histogram.first + n_bins + 1]
    figure = go.Figure()
    rows: list[tuple[Any, ...]] = []
    for name, sign, counts, colour in _signs(histogram):
        spans = [f"{number(sign * edges[i])} to {number(sign * edges[i + 1])}" for i in range(n_bins)]
        figure.add_bar(
            name=name,
            x=np.log10(np.sqrt(edges[:-1] * edges[1:])).tolist(),
            y=list(counts),
            width=math.log10(edges[1] / edges[0]),
            customdata=spans,
            hovertemplate="%{customdata}<br>%{y} tokens<extra></extra>",
            marker_color=colour,
        )
        rows += [(span, count) for span, count in zip(spans, counts, strict=True) if count]
    figure.update_layout(
        figure_layout("value where it fires", "tokens"), barmode="stack", showlegend=len(figure.data) > 1
    )
    if n_bins:
        ticks = _log_ticks(edges[0], edges[-1])
        figure.update_xaxes(tickvals=[math.log10(tick) for tick in ticks], ticktext=[number(tick) for tick in ticks])
    return Panel("Activations", figure, ("value", "tokens"), tuple(rows))


def logits_histogram(record: FeatureRecord) -> Panel:
    """The effect of the decoder row on every token of the vocabulary."""
    effect = record.logits
    counts = effect.counts if effect else ()
    edges = np.linspace(effect.low, effect.high, len(counts) + 1) if effect and counts else np.zeros(1)
    spans = [f"{number(low)} to {number(high)}" for low, high in pairwise(edges)]
    middle = (edges[1:] + edges[:-1]) / 2
    bar = go.Bar(
        x=middle.tolist(),
        y=list(counts),
        width=float(edges[1] - edges[0]) if len(edges) > 1 else None,
        customdata=spans,
        hovertemplate="%{customdata}<br>%{y} tokens of the vocabulary<extra></extra>",
        marker_color=[POSITIVE if x > 0 else NEGATIVE for x in middle],
    )
    figure = go.Figure(bar)
    figure.update_layout(figure_layout("logit per unit of code", "vocabulary"))
    rows = tuple((span, count) for span, count in zip(spans, counts, strict=True) if count)
    return Panel("Effect on the logits", figure, ("logit per unit", "tokens of the vocabulary"), rows)


def logits_bars(record: FeatureRecord) -> Panel:
    """The tokens that the decoder row raises and lowers most, as horizontal bars."""
    effect = record.logits
    weights: list[TokenWeight] = [*effect.top, *reversed(effect.bottom)] if effect else []
    figure = go.Figure(
        go.Bar(
            x=[weight.weight for weight in weights],
            y=list(range(len(weights))),
            orientation="h",
            marker_color=[POSITIVE if weight.weight > 0 else NEGATIVE for weight in weights],
            hovertemplate="%{x:.3f}<extra></extra>",
        )
    )
    figure.update_layout(figure_layout("logit per unit of code", ""), height=120 + 18 * len(weights))
    figure.update_yaxes(
        autorange="reversed",
        tickvals=list(range(len(weights))),
        ticktext=[plain(visible(weight.token)) for weight in weights],
        tickfont_family="monospace",
    )
    rows = tuple((visible(weight.token), weight.weight) for weight in weights)
    return Panel("Tokens raised and lowered", figure, ("token", "logit per unit"), rows)


def feature_map(store: FeatureStore) -> Panel:
    """Every feature at the first two principal components of its unit decoder row, coloured by log10 density.

    Features that never fire are left out. Of more than 200,000 an evenly spaced part is drawn, and the title says so.
    """
    columns = store.columns("x", "y", "density")
    drawn = np.flatnonzero(np.isfinite(columns["x"]) & (columns["density"] > 0))
    step = max(1, math.ceil(len(drawn) / MAX_MAP_POINTS))
    drawn = drawn[::step]
    x, y, density = (columns[name][drawn] for name in ("x", "y", "density"))
    points = go.Scattergl if len(drawn) > MAX_SVG_POINTS else go.Scatter
    figure = go.Figure(
        points(
            x=np.round(x, 4).tolist(),
            y=np.round(y, 4).tolist(),
            mode="markers",
            customdata=drawn.tolist(),
            marker={
                "size": 5 if len(drawn) > MAX_SVG_POINTS else 7,
                "color": np.round(np.log10(density), 3).tolist(),
                "colorscale": DENSITY_SCALE,
                "colorbar": {"title": {"text": "log10 density"}, "thickness": 10, "outlinewidth": 0},
            },
            hovertemplate="feature %{customdata}<br>density 10^%{marker.color}<extra></extra>",
        )
    )
    figure.update_layout(figure_layout("", ""), height=500, dragmode="lasso", margin_t=36)
    figure.update_xaxes(fixedrange=False, showticklabels=False)
    figure.update_yaxes(fixedrange=False, showticklabels=False, rangemode="normal")
    part = f", every {step}th drawn" if step > 1 else ""
    rows = tuple(zip(drawn.tolist(), x.tolist(), y.tolist(), strict=True))
    return Panel(f"Map of features: {store.info.map_note}{part}", figure, ("feature", "x", "y"), rows)


def number(value: float | None) -> str:
    """At most four characters of precision, as a person reads it: 0.0123, 1.5e-06, 12.3; a dash for None."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.2g}"


def visible(text: str) -> str:
    """Text on one line: newlines, tabs and leading or trailing spaces as signs."""
    shown = text.replace("\n", "↵").replace("\r", "␍").replace("\t", "⇥")
    core = shown.strip(" ")
    if not core:
        return "␣" * len(shown)
    start = len(shown) - len(shown.lstrip(" "))
    return "␣" * start + core + "␣" * (len(shown) - start - len(core))


def plain(text: str) -> str:
    """Text that plotly shows as it is: no tag, entity or template in it is read."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("%{", "%\u200b{").replace("$", "&#36;")


def _signs(histogram: Histogram) -> list[tuple[str, int, tuple[int, ...], str]]:
    series = [("positive", 1, histogram.positive, POSITIVE), ("negative", -1, histogram.negative, NEGATIVE)]
    return [entry for entry in series if entry[2]]


def figure_layout(x_title: str, y_title: str) -> dict[str, Any]:
    """What all figures share: small margins, no ground of their own, axes that do not zoom by accident."""
    return {
        "margin": {"l": 48, "r": 12, "t": 8, "b": 40},
        "height": 190,
        "bargap": 0.06,
        "xaxis": {"title": {"text": x_title, "standoff": 6, "font": {"size": 11}}, "fixedrange": True},
        "yaxis": {
            "title": {"text": y_title, "standoff": 6, "font": {"size": 11}},
            "fixedrange": True,
            "rangemode": "tozero",
        },
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def _log_ticks(low: float, high: float) -> list[float]:
    """Ticks of 1, 2, 5 times a power of ten between low and high; powers alone over more than three decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _plain_arrays(trace: dict[str, Any]) -> dict[str, Any]:
    """The trace with arrays as lists, so that it is JSON as it stands."""
    return {key: list(value) if isinstance(value, (tuple, np.ndarray)) else value for key, value in trace.items()}
