"""Several evaluated dictionaries on one page: trade-offs, scores with floors, curves, every figure. No torch here.

`comparison_page(named, path)` takes what `eval.json` holds. Which figure stands on which axis is said in the tables at
the top of this file; figures that no dictionary has are left out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saetools.dashboard.panel import Panel, layout, number, plain
from saetools.dashboard.report import Section, Table, report_page
from saetools.records import EvalRecord

Named = Mapping[str, Sequence[EvalRecord]]

COLOURS = ("#2f7ebc", "#c2620e", "#3b8f57", "#a8509f", "#8a7300", "#c4443f", "#5d6fc4", "#4e8f93")
"""Told apart in pairs with every kind of colour vision together with SYMBOLS; 3:1 on white and on near-black."""
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon")
TRADE_OFFS = ("fvu", "ce_recovered_zero", "ce_recovered_mean", "kl_recovered_zero", "dead_fraction")
"""Figures drawn over mean L0."""
SCORES = (
    "matched_cosine",
    "shared_features",
    "probe_top1",
    "probe_top5",
    "tpp_10",
    "scr_10",
    "absorption",
    "steering_area",
    "class_steering_area",
    "logit_influence",
    "token_purity",
    "ngram_fuzzing",
    "class_detection",
    "co_firing_cosine",
)
"""Figures drawn with intervals, beside their floor or chance level where there is one."""
FLOORS = {"co_firing_cosine": "independent_cosine"}
"""Floors that are not called <figure>_random or <figure>_chance."""
CURVES: tuple[tuple[str, str, str, str, str, str, str], ...] = (
    ("fvu", "first_position", "fvu", "FVU by position", "position in the window", "FVU", ""),
    ("ce_spliced", "quantile", "nats_added", "Loss added per token", "quantile of tokens", "nats", ""),
    ("l0_mean", "quantile", "l0", "L0 per token", "quantile of tokens", "features", ""),
    ("zipf_exponent", "rank", "density", "Densities", "rank of the feature", "fraction of tokens", "xy"),
    ("dead_fraction", "tokens", "dead_fraction", "Dead features by tokens read", "tokens", "fraction", "x"),
    ("coherence", "m", "babel", "Babel function", "m", "greatest sum of m |cosines|", ""),
    ("coherence", "quantile", "nearest_cosine", "Nearest atom", "quantile of features", "|cosine|", ""),
    ("steering_area", "off_target", "on_target", "Steering: effect over cost", "off-target KL, nats", "nats", ""),
)
"""figure, x and y in its series, title, axes, logarithmic axes."""
MAX_POINTS = 33
INTERVALS = "95 % intervals over held-out documents."
LOGARITHMIC: dict[str, Any] = {"type": "log", "dtick": 1}


def comparison_page(named: Named, path: Path | str, title: str = "Comparison of dictionaries") -> None:
    """Write the page of the dictionaries in `named` (name -> records of its eval.json)."""
    facts = [("dictionaries", str(len(named))), *_common_facts(named)]
    sections = [
        Section("Trade-offs", (INTERVALS,) if _has_intervals(named) else (), tuple(trade_offs(named))),
        Section(
            "Scores and their floors",
            ("Filled: the dictionary, with its 95 % interval. Hollow: the same for random atoms, or by chance.",),
            tuple(scores(named)),
        ),
        Section("Curves", (), tuple(curves(named))),
        Section("Every figure", ("95 % intervals in brackets, where there are any.",), (), (figure_table(named),)),
    ]
    report_page(title, facts, [section for section in sections if section.panels or section.tables], path)


def _has_intervals(named: Named) -> bool:
    found = (_find(records, figure) for records in named.values() for figure in TRADE_OFFS)
    return any(record is not None and record.spread is not None for record in found)


def trade_offs(named: Named, groups: Mapping[str, str] | None = None) -> Iterator[Panel]:
    """A point per dictionary: each of TRADE_OFFS over mean L0. Dictionaries of one group (by name) share a colour."""
    groups = groups or {name: name for name in named}
    order = list(dict.fromkeys(groups[name] for name in named))
    l0 = {name: _find(records, "l0_mean") for name, records in named.items()}
    for figure in TRADE_OFFS:
        found = {name: _find(records, figure) for name, records in named.items()}
        pairs = [(name, l0[name], y) for name, y in found.items()]
        shown = [(name, x, y) for name, x, y in pairs if x is not None and y is not None]
        data = []
        for place, group in enumerate(order):
            own = [(name, x, y) for name, x, y in shown if groups[name] == group]
            if own:
                data.append(
                    {
                        **_marker(place),
                        "name": plain(group),
                        "x": [x.value for _, x, _ in own],
                        "y": [y.value for _, _, y in own],
                        "error_y": _errors([y for _, _, y in own]),
                        "text": [plain(name) for name, _, _ in own],
                        "hovertemplate": f"%{{text}}<br>L0 %{{x:.3g}}<br>{figure} %{{y:.4g}}<extra></extra>",
                    }
                )
        if data:
            signed = any((y.value or 0) < 0 for _, _, y in shown)  # else no axis of shares begins below 0
            y_axis = {"rangemode": "normal" if signed else "nonnegative"}
            shape = _with_legend(layout("mean L0", figure, {"fixedrange": False}, y_axis), len(data))
            rows = tuple((name, _round(x.value), _round(y.value)) for name, x, y in shown)
            yield Panel(f"{figure} over L0", data, shape, ("dictionary", "L0", figure), rows)


def scores(named: Named) -> Iterator[Panel]:
    """A row per dictionary: each of SCORES with its interval, and its floor."""
    for figure in SCORES:
        shown = {n: r for n, r in ((n, _find(records, figure)) for n, records in named.items()) if r is not None}
        if not shown:
            continue
        floors = {name: _floor(named[name], figure) for name in shown}
        places = list(range(len(shown)))
        own = {
            "type": "scatter",
            "mode": "markers",
            "x": [record.value for record in shown.values()],
            "y": places,
            "error_x": _errors(list(shown.values())),
            "marker": {"color": COLOURS[0], "size": 9},
            "text": [plain(name) for name in shown],
            "hovertemplate": "%{text}<br>%{x:.4g}<extra></extra>",
        }
        floor = {
            "type": "scatter",
            "mode": "markers",
            "x": [None if record is None else record.value for record in floors.values()],
            "y": places,
            "marker": {"color": COLOURS[1], "size": 9, "symbol": "circle-open", "line": {"width": 2}},
            "hovertemplate": "floor or chance %{x:.4g}<extra></extra>",
        }
        axis = {
            "tickvals": places,
            "ticktext": [plain(_short(name)) for name in shown],
            "autorange": "reversed",
            "rangemode": "normal",
            "automargin": True,
        }
        unit = next(iter(shown.values())).unit
        shape = layout(unit, "", {}, axis) | {"height": 90 + 22 * len(shown), "showlegend": False}
        rows = tuple(
            (name, _round(record.value), *(_round(v) for v in record.spread or (None, None)), _value(floors[name]))
            for name, record in shown.items()
        )
        columns = ("dictionary", figure, "low", "high", "floor or chance")
        yield Panel(figure, [own, *([floor] if any(floors.values()) else [])], shape, columns, rows)


def curves(named: Named) -> Iterator[Panel]:
    """A line per dictionary for each of CURVES; the page makes their tables from the lines (report.js)."""
    for figure, x_name, y_name, title, x_title, y_title, logarithmic in CURVES:
        data = []
        for place, (name, records) in enumerate(named.items()):
            record = _find(records, figure)
            series = (record.series if record else None) or {}
            points = _thinned(
                [
                    (x, y)
                    for x, y in zip(series.get(x_name, []), series.get(y_name, []), strict=True)
                    if x is not None and y is not None
                    if (x > 0 or "x" not in logarithmic) and (y > 0 or "y" not in logarithmic)
                ]
            )
            if points:
                colour = COLOURS[place % len(COLOURS)]
                dash = ("solid", "dash", "dot", "dashdot")[place // len(COLOURS) % 4]
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines" if len(points) > 1 else "markers",
                        "name": plain(name),
                        "x": [_round(x) for x, _ in points],
                        "y": [_round(y) for _, y in points],
                        "line": {"color": colour, "width": 2, "dash": dash},
                        "hovertemplate": f"{plain(name)}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>",
                    }
                )
        if data:
            x_axis = LOGARITHMIC if "x" in logarithmic else {}
            y_axis = {"rangemode": "normal", **(LOGARITHMIC if "y" in logarithmic else {})}
            shape = _with_legend(layout(x_title, y_title, x_axis, y_axis), len(data))
            yield Panel(title, data, shape, ("dictionary", x_title, y_title), ())


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every n-th point, and the last, so that at most MAX_POINTS are drawn."""
    step = -(-(len(points) - 1) // (MAX_POINTS - 1))
    return points if step < 2 else [*points[:-1:step], points[-1]]


def figure_table(named: Named) -> Table:
    """Every figure with a value, grouped by evaluation: one column per dictionary."""
    groups: dict[str, dict[str, str]] = {}
    for records in named.values():
        for record in records:
            if record.value is not None:
                figures = groups.setdefault(str(record.config.get("evaluation", "other")), {})
                figures.setdefault(record.name, record.unit)
    rows: list[tuple[str, ...]] = []
    for evaluation, found in groups.items():
        rows.append((evaluation,))
        for figure, unit in found.items():
            rows.append((figure, *(_cell(_find(records, figure)) for records in named.values()), unit))
    return Table(("figure", *(_short(name) for name in named), "unit"), tuple(rows))


def _cell(record: EvalRecord | None) -> str:
    if record is None or record.value is None:
        return "-"
    low_high = f" [{number(record.spread[0])}, {number(record.spread[1])}]" if record.spread else ""
    return number(record.value) + low_high


def _find(records: Sequence[EvalRecord], figure: str) -> EvalRecord | None:
    """The record of a figure, where it has a finite value."""
    found = next((record for record in records if record.name == figure), None)
    return found if found is not None and found.value is not None and math.isfinite(found.value) else None


def _floor(records: Sequence[EvalRecord], figure: str) -> EvalRecord | None:
    """The figure of random atoms or by chance; of an AUC 0.5."""
    names = (FLOORS.get(figure, ""), f"{figure}_random", f"{figure}_chance")
    own = _find(records, figure)
    half = None if own is None or own.unit != "AUC" else own.model_copy(update={"value": 0.5, "spread": None})
    return next((found for name in names if (found := _find(records, name)) is not None), half)


def _value(record: EvalRecord | None) -> float | str:
    return "-" if record is None else _round(record.value)


def _round(value: float | None) -> float | str:
    """Five digits: what a page shows; a dash for None."""
    return "-" if value is None else float(f"{value:.5g}")


def _errors(records: Sequence[EvalRecord]) -> dict[str, Any]:
    """Plotly's asymmetric error bars to the ends of each interval; 0 where there is none."""
    spans = [(r.spread or (r.value, r.value), r.value) for r in records]
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, (high or 0) - (value or 0)) for (_, high), value in spans],
        "arrayminus": [max(0.0, (value or 0) - (low or 0)) for (low, _), value in spans],
        "thickness": 1.5,
        "width": 3,
    }


def _marker(place: int) -> dict[str, Any]:
    colour, symbol = COLOURS[place % len(COLOURS)], SYMBOLS[place // len(COLOURS) % len(SYMBOLS)]
    marker = {"color": colour, "symbol": symbol, "size": 10}
    return {"type": "scatter", "mode": "markers", "marker": marker, "cliponaxis": False}


def _with_legend(shape: dict[str, Any], n: int) -> dict[str, Any]:
    """The layout with its legend below, and room for it."""
    legend = {"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0, "font": {"size": 11}}
    return shape | {"height": 300 + 9 * n, "showlegend": n > 1, "legend": legend}


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"...{name[-29:]}"


def _common_facts(named: Named) -> list[tuple[str, str]]:
    """Numbers of tokens, where all dictionaries were judged on as many."""
    counts = {
        label: {r.n for records in named.values() if (r := _find(records, figure)) is not None}
        for label, figure in (("held-out tokens", "fvu"), ("held-out predictions", "ce_spliced"))
    }
    return [(label, f"{next(iter(found)):,}") for label, found in counts.items() if len(found) == 1]
