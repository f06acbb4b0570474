"""The notebook face: `saetools.explore(run).feature(123)`. Every panel has `.figure`. No torch here."""

import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetools.dashboard.curves import read_metrics, training_curves
from saetools.dashboard.export import asset, fill, inline_json, policy
from saetools.dashboard.panel import Panel
from saetools.dashboard.panels import (
    activation_histogram,
    density_histogram,
    feature_map,
    logits_bars,
    logits_histogram,
)
from saetools.dashboard.views import COLUMNS, feature_view, table_rows
from saetools.errors import FormatError
from saetools.features.records import Example, FeatureRecord
from saetools.features.store import FeatureStore, Filter

if TYPE_CHECKING:
    import plotly.graph_objects as go

FRAME_HEIGHT = 720
PER_BAND = {"top": 10, "q5": 2, "q4": 2, "q3": 2, "q2": 2, "q1": 2, "uniform": 1}
START = """
window.SaeFeature.draw(document.getElementById("root"), JSON.parse(document.getElementById("view").textContent),
  { config: {}, has: () => false });
window.SaeTokens.listen(document.getElementById("root"));
"""
FRAME = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{policy}}"><style>{{style}}</style></head>
<body><main><div class="sae-feature-head"><h2>{{title}}</h2></div><div id="root" class="sae-feature"></div></main>
<script type="application/json" id="view">{{view}}</script>{{scripts}}</body></html>"""


@dataclass(frozen=True)
class FeaturePanel:
    """One feature in a notebook: its contexts drawn by our script in a frame of its own; its charts as figures."""

    store: FeatureStore
    feature: int

    @cached_property
    def record(self) -> FeatureRecord:
        """Its statistics as a record."""
        return self.store.feature(self.feature)

    @property
    def examples(self) -> list[Example]:
        """Its contexts as records."""
        return self.store.examples(self.feature)

    @property
    def figure(self) -> "go.Figure":
        """Its activation histogram."""
        return self.activations().figure

    def activations(self) -> Panel:
        return activation_histogram(self.record)

    def logits(self) -> Panel:
        return logits_bars(self.record)

    def logits_histogram(self) -> Panel:
        return logits_histogram(self.record)

    def _repr_html_(self) -> str:
        """A sandboxed frame: nothing in it can reach the notebook, and it makes no request."""
        scripts = [asset("token.js"), asset("feature.js"), START]
        label = self.store.annotation(self.feature)[0]
        document = fill(
            FRAME,
            policy=policy(scripts),
            style=asset("style.css"),
            title=html.escape(f"Feature {self.feature} {label}".strip()),
            view=inline_json(feature_view(self.store, self.feature, PER_BAND)),
            scripts="".join(f"<script>{script}</script>" for script in scripts),
        )
        return (
            f'<iframe sandbox="allow-scripts" title="Feature {self.feature}" width="100%" height="{FRAME_HEIGHT}" '
            f'style="border:0" srcdoc="{html.escape(document)}"></iframe>'
        )


@dataclass(frozen=True)
class TablePanel:
    """Rows of the table of features."""

    rows: list[dict[str, Any]]
    total: int

    def _repr_html_(self) -> str:
        def cells(tag: str, values: list[Any]) -> str:
            return "".join(f"<{tag}>{html.escape('' if v is None else str(v))}</{tag}>" for v in values)

        head = cells("th", [heading for _, heading, _ in COLUMNS])
        body = "".join(f"<tr>{cells('td', list(row.values()))}</tr>" for row in self.rows)
        caption = f"{len(self.rows)} of {self.total:,} features"
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Explorer:
    """The panels of a feature store, for notebooks and scripts."""

    store: FeatureStore
    metrics: Path | None = None  # of the run, for its training curves

    def feature(self, feature: int) -> FeaturePanel:
        """One feature. DataError where the store has none of that number."""
        self.store.feature(feature)
        return FeaturePanel(self.store, feature)

    def density(self) -> Panel:
        return density_histogram(self.store)

    def map(self) -> Panel:
        return feature_map(self.store)

    def table(self, sort: str = "-density", search: str = "", limit: int = 20) -> TablePanel:
        page = self.store.table(sort, Filter(text=search), limit=limit)
        return TablePanel(table_rows(page.rows), page.total)

    def training(self) -> list[Panel]:
        """The curves of the run. FormatError where there is no run, or it has logged nothing."""
        if self.metrics is None:
            raise FormatError("these features belong to no run, so there are no training curves.")
        return training_curves(read_metrics(self.metrics))

    def label(self, feature: int, label: str, note: str = "") -> None:
        """Name a feature; kept beside the store."""
        self.store.annotate(feature, label, note)

    def _repr_html_(self) -> str:
        info = self.store.info
        facts = f"{info.n_features:,} features of {info.kind} at {info.spec.point}, over {info.n_tokens:,} tokens"
        return f"<p><b>{html.escape(info.title)}</b><br>{html.escape(facts)}</p>{self.table(limit=10)._repr_html_()}"
