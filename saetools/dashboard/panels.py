"""Panels: pure functions from store records to figures and tables. No torch here."""

import base64
import math
from itertools import pairwise
from typing import Any

import numpy as np

from saetools.dashboard.panel import NEGATIVE, POSITIVE, Panel, layout, number, plain, visible
from saetools.features.records import FeatureRecord, Histogram, PromptFirings, TokenWeight, bin_edges
from saetools.features.store import FeatureStore, Filter

DENSITY_BINS_PER_DECADE = 8
DENSITY_SCALE = [[0.0, "#a9cbe8"], [0.5, "#4b90cf"], [1.0, "#1c64ae"]]
VALUE_SCALE = [[0.0, "rgba(194,98,14,0)"], [1.0, POSITIVE]]
SIGNED_SCALE = [[0.0, NEGATIVE], [0.5, "rgba(128,128,128,0)"], [1.0, POSITIVE]]
MAX_MAP_POINTS, MAX_NAMED_POINTS, MAX_SVG_POINTS = 200_000, 20_000, 3_000


def density_histogram(store: FeatureStore) -> Panel:
    """How many features fire how often: counts in log10 bins of density; features that never fire are in the note."""
    density = store.columns("density")["density"]
    alive = density[density > 0]
    note = f"{len(density) - len(alive):,} of {len(density):,} features never fired"
    lowest = min(math.floor(np.log10(alive.min())), -1) if len(alive) else -1
    edges = np.linspace(lowest, 0, DENSITY_BINS_PER_DECADE * -lowest + 1)
    counts, _ = np.histogram(np.log10(alive), edges)
    spans = _spans(10**edges)
    bar = _bars(edges, counts.tolist(), spans, "density %{customdata}<br>%{y} features", NEGATIVE)
    ticks = list(range(lowest, 1))
    axis = {"tickvals": ticks, "ticktext": [number(10.0**tick) for tick in ticks]}
    shape = layout("fraction of tokens at which a feature fires", "features", axis)
    rows = tuple(zip(spans, counts.tolist(), strict=True))
    return Panel("Firing density", [bar], shape, ("density", "features"), rows, note)


def activation_histogram(record: FeatureRecord) -> Panel:
    """The values of one feature where it fires, in log bins of magnitude; negative values are a second series."""
    histogram = record.histogram
    n_bins = max(len(histogram.positive), len(histogram.negative))
    edges = bin_edges()[histogram.first : histogram.first + n_bins + 1]
    data: list[dict[str, Any]] = []
    rows: list[tuple[Any, ...]] = []
    for name, sign, counts, colour in _signs(histogram):
        spans = _spans(sign * edges)
        data.append(
            _bars(np.log10(edges), list(counts), spans, "%{customdata}<br>%{y} tokens", colour) | {"name": name}
        )
        rows += [(span, count) for span, count in zip(spans, counts, strict=True) if count]
    ticks = _log_ticks(edges[0], edges[-1]) if n_bins else []
    axis = {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": [number(tick) for tick in ticks]}
    shape = layout("value where it fires", "tokens", axis) | {"barmode": "stack", "showlegend": len(data) > 1}
    return Panel("Activations", data, shape, ("value", "tokens"), tuple(rows))


def logits_histogram(record: FeatureRecord) -> Panel:
    """The effect of the decoder row on every token of the vocabulary."""
    effect = record.logits
    counts = list(effect.counts) if effect else []
    edges = np.linspace(effect.low, effect.high, len(counts) + 1) if effect and counts else np.zeros(1)
    spans = _spans(edges)
    colours = [POSITIVE if high + low > 0 else NEGATIVE for low, high in pairwise(edges.tolist())]
    bar = _bars(edges, counts, spans, "%{customdata}<br>%{y} tokens of the vocabulary", colours)
    rows = tuple((span, count) for span, count in zip(spans, counts, strict=True) if count)
    shape = layout("logit per unit of code", "vocabulary")
    return Panel("Effect on the logits", [bar], shape, ("logit per unit", "tokens of the vocabulary"), rows)


def logits_bars(record: FeatureRecord) -> Panel:
    """The tokens that the decoder row raises and lowers most, as horizontal bars."""
    effect = record.logits
    weights: list[TokenWeight] = [*effect.top, *reversed(effect.bottom)] if effect else []
    places = list(range(len(weights)))
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": [weight.weight for weight in weights],
        "y": places,
        "marker": {"color": [POSITIVE if weight.weight > 0 else NEGATIVE for weight in weights]},
        "hovertemplate": "%{x:.3f}<extra></extra>",
    }
    names = [plain(visible(weight.token)) for weight in weights]
    axis = {"autorange": "reversed", "tickvals": places, "ticktext": names, "tickfont": {"family": "monospace"}}
    shape = layout("logit per unit of code", "", y=axis) | {"height": 120 + 18 * len(weights)}
    rows = tuple((visible(weight.token), weight.weight) for weight in weights)
    return Panel("Tokens raised and lowered", [bar], shape, ("token", "logit per unit"), rows)


def feature_map(store: FeatureStore) -> Panel:
    """Every feature at its place on the map, coloured by log10 density.

    Features that never fire are left out. Of more than 200,000 an evenly spaced part is drawn, and the note says so.
    """
    drawn, columns, part = _placed(store)
    x, y = (np.round(columns[name][drawn], 4).tolist() for name in ("x", "y"))
    is_large = len(drawn) > MAX_SVG_POINTS
    points = {
        "type": "scattergl" if is_large else "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "customdata": drawn.tolist(),
        "marker": {
            "size": 5 if is_large else 7,
            "color": np.round(np.log10(columns["density"][drawn]), 3).tolist(),
            "colorscale": DENSITY_SCALE,
            "colorbar": {"title": {"text": "log10 density"}, "thickness": 10, "outlinewidth": 0},
        },
        "hovertemplate": "feature %{customdata}<br>density 10^%{marker.color}<extra></extra>",
    }
    free = {"fixedrange": False, "showticklabels": False, "showgrid": False, "zeroline": False}
    shape = layout("", "", free, {**free, "rangemode": "normal"})
    shape |= {"height": 500, "dragmode": "lasso", "margin": {"l": 16, "r": 12, "t": 36, "b": 16}}
    rows = tuple(zip(drawn.tolist(), x, y, strict=True))
    return Panel("Map of features", [points], shape, ("feature", "x", "y"), rows, f"{store.info.map_note}{part}")


def firings_heatmap(firings: PromptFirings, n_features: int) -> Panel:
    """Which features fire at which tokens of a text: the strongest `n_features` by the text's tokens."""
    shown = firings.features[:n_features]
    grid = np.zeros((len(shown), len(firings.tokens)))
    for row, (_, pairs) in enumerate(shown):
        for at, value in pairs:
            grid[row, at] = value
    extent = float(np.abs(grid).max(initial=0.0)) or 1.0
    names = [f"#{feature}" for feature, _ in shown]
    heat = {
        "type": "heatmap",
        "z": grid.tolist(),
        "zmin": -extent if (grid < 0).any() else 0.0,
        "zmax": extent,
        "colorscale": SIGNED_SCALE if (grid < 0).any() else VALUE_SCALE,
        "hovertemplate": "%{y} at token %{x}<br>%{z:.3g}<extra></extra>",
        "colorbar": {"thickness": 10, "outlinewidth": 0},
    }
    tokens = [plain(visible(token)) for token in firings.tokens]
    x = {"tickvals": list(range(len(tokens))), "ticktext": tokens, "tickfont": {"family": "monospace"}}
    y = {"tickvals": list(range(len(names))), "ticktext": names, "autorange": "reversed", "rangemode": "normal"}
    rows = tuple((name, *(round(value, 4) for value in line)) for name, line in zip(names, grid.tolist(), strict=True))
    shape = layout("", "", x, y) | {"height": 140 + 18 * len(shown)}
    columns = ("feature", *(visible(token) for token in firings.tokens))
    return Panel("Features that fire", [heat], shape, columns, rows)


def map_points(store: FeatureStore) -> dict[str, Any]:
    """The points of `feature_map` for the pages' own script: base64 of little-endian int32 and float32 columns.

    Labels or top tokens come with at most 20,000 points.
    """
    drawn, columns, part = _placed(store)
    tokens: list[str] | None = None
    if len(drawn) <= MAX_NAMED_POINTS:
        rows = store.table("feature", Filter(features=drawn.tolist()), limit=len(drawn)).rows
        tokens = [row.label or row.peak_token or "" for row in rows]
    packed = {name: _packed(columns[name][drawn], "<f4") for name in ("x", "y", "density")}
    title = f"{store.info.map_note}{part}"
    return {"title": title, "feature": _packed(drawn, "<i4"), **packed, "tokens": tokens}


def _placed(store: FeatureStore) -> tuple[np.ndarray, dict[str, np.ndarray], str]:
    """(features with a place on the map, columns, what was left out)."""
    columns = store.columns("x", "y", "density")
    placed = np.isfinite(columns["x"]) & (columns["density"] > 0)
    drawn = np.flatnonzero(placed)
    step = max(1, math.ceil(len(drawn) / MAX_MAP_POINTS))
    return drawn[::step], columns, f"; every {step}th feature is drawn" if step > 1 else ""


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(values.astype(dtype).tobytes()).decode()


def _bars(
    edges: np.ndarray, counts: list[int], spans: list[str], hover: str, colour: str | list[str]
) -> dict[str, Any]:
    """Bars between equidistant edges."""
    return {
        "type": "bar",
        "x": ((edges[1:] + edges[:-1]) / 2).tolist(),
        "y": counts,
        "width": float(edges[1] - edges[0]) if len(edges) > 1 else 1.0,
        "customdata": spans,
        "hovertemplate": hover + "<extra></extra>",
        "marker": {"color": colour},
    }


def _spans(edges: np.ndarray) -> list[str]:
    return [f"{number(low)} to {number(high)}" for low, high in pairwise(edges.tolist())]


def _signs(histogram: Histogram) -> list[tuple[str, int, tuple[int, ...], str]]:
    series = [("positive", 1, histogram.positive, POSITIVE), ("negative", -1, histogram.negative, NEGATIVE)]
    return [entry for entry in series if entry[2]]


def _log_ticks(low: float, high: float) -> list[float]:
    """Ticks of 1, 2, 5 times a power of ten between low and high; powers alone over more than three decades.

    Where these are not even two, two a tenth of the width from the ends, where text would be cut.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) > 1 else [low * (high / low) ** part for part in (0.1, 0.9)]
