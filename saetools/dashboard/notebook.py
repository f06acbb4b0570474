"""The notebook face: `saetools.explore(run).feature(123)`. Every panel has `.figure`. No torch here."""

import html
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetools.dashboard.comparison import Comparison, cosine_histogram
from saetools.dashboard.curves import read_metrics, training_curves
from saetools.dashboard.frame import MOST_BYTES, frame
from saetools.dashboard.panel import Panel, number, plain, side_by_side, visible
from saetools.dashboard.panels import (
    activation_histogram,
    density_histogram,
    feature_map,
    firings_heatmap,
    logits_bars,
    logits_histogram,
)
from saetools.dashboard.views import COLUMNS, feature_view, table_rows
from saetools.errors import FormatError
from saetools.features.records import Example, FeatureRecord, PromptFirings
from saetools.features.store import FeatureStore, Filter

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_SHOWN = 60  # characters in a cell of a table
MOST_SAID = 200  # characters of a label or a note in a frame
MOST_RELATED = 10
PER_BAND = {"top": 10, "q5": 2, "q4": 2, "q3": 2, "q2": 2, "q1": 2, "uniform": 1}
SHARES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.1, 0.0)
"""Of those contexts, what is tried until a frame is small enough; 0: none."""

FEATURE_SCRIPTS = ("token.js", "bars.js", "feature.js")
DRAW_FEATURE = """
window.SaeFeature.draw(root, view, { has: () => false });
window.SaeTokens.listen(root);
"""
DRAW_PROMPT = """
window.SaeTokens.draw(root, view.bands, view.scale);
root.classList.add("sae-lines");
window.SaeTokens.listen(root);
"""


def _first(band: dict[str, Any], share: float) -> dict[str, Any]:
    """The band with this share of its usual number of examples, one at least."""
    return {**band, "examples": band["examples"][: max(1, int(share * PER_BAND[band["band"]]))]}


@dataclass(frozen=True)
class FeaturePanel:
    """One feature in a notebook: its contexts drawn by our script in a frame of its own; its charts as figures."""

    store: FeatureStore = field(repr=False)
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
        """The values where it fires."""
        return activation_histogram(self.record)

    def logits(self) -> Panel:
        """The tokens that it raises and lowers most."""
        return logits_bars(self.record)

    def logits_histogram(self) -> Panel:
        """Its effect on the whole vocabulary."""
        return logits_histogram(self.record)

    def _repr_html_(self) -> str:
        """As many of its contexts as fit into a frame; `examples` has all."""
        label = self.store.annotation(self.feature)[0][:MOST_SAID]
        title, n_all = f"Feature {self.feature} {label}".strip(), len(self.examples)
        view = feature_view(self.store, self.feature, PER_BAND)
        view["note"] = view["note"][:MOST_SAID]
        for group in view["neighbours"]:
            group["items"] = group["items"][:MOST_RELATED]
        for share in SHARES:
            view["bands"] = [_first(band, share) for band in view["bands"] if share]
            n_shown = sum(len(band["examples"]) for band in view["bands"])
            note = f"{n_shown} of {n_all} contexts" if n_shown < n_all else ""
            shown = frame(title, view, FEATURE_SCRIPTS, DRAW_FEATURE, note)
            if len(shown.encode()) <= MOST_BYTES:
                break
        return shown


@dataclass(frozen=True)
class PromptPanel:
    """Which features fire at the tokens of a text: each over the whole text, the strongest first."""

    firings: PromptFirings = field(repr=False)  # thousands of features, in a notebook's plain text too
    n_shown: int = 20

    @property
    def figure(self) -> "go.Figure":
        """Features by tokens as a heat map."""
        return firings_heatmap(self.firings, self.n_shown).figure

    def _repr_html_(self) -> str:
        tokens = list(self.firings.tokens)
        bands, scale = [], 0.0
        for feature, pairs in self.firings.features[: self.n_shown]:
            peak = max(pairs, key=lambda pair: abs(pair[1]))[0]
            at, values = [at for at, _ in pairs], [value for _, value in pairs]
            example = {"tokens": tokens, "at": at, "values": values, "peak": peak, "document": "", "position": 0}
            bands.append({"title": f"Feature {feature}", "examples": [example]})
            scale = max(scale, *map(abs, values))
        title = f"{len(tokens)} tokens, {len(self.firings.features)} features"
        while True:
            note = f"the strongest {len(bands)}" if len(bands) < len(self.firings.features) else ""
            shown = frame(title, {"bands": bands, "scale": scale}, ("token.js",), DRAW_PROMPT, note)
            if not bands or len(shown.encode()) <= MOST_BYTES:
                return shown
            bands = bands[: len(bands) * 3 // 4]


@dataclass(frozen=True)
class Panels:
    """Several panels that belong together, e.g. the training curves; `.figure` has them all."""

    panels: tuple[Panel, ...]

    def __iter__(self) -> Iterator[Panel]:
        return iter(self.panels)

    def __len__(self) -> int:
        return len(self.panels)

    def __getitem__(self, index: int) -> Panel:
        return self.panels[index]

    @property
    def figure(self) -> "go.Figure":
        """All panels in one figure, two beside each other."""
        return side_by_side(self.panels)

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> Any:
        return self.figure._repr_mimebundle_(*args, **kwargs)


@dataclass(frozen=True)
class TablePanel:
    """Rows of the table of features."""

    rows: list[dict[str, Any]] = field(repr=False)
    total: int

    @property
    def figure(self) -> "go.Figure":
        """The rows as plotly's table."""
        import plotly.graph_objects as go

        from saetools.dashboard.figure import OfflineFigure

        header = {"values": [heading for _, heading, _ in COLUMNS], "align": "left"}
        values = [[plain(_shown(row[name])) for row in self.rows] for name, _, _ in COLUMNS]
        table = go.Table(header=header, cells={"values": values, "align": "left"})
        return OfflineFigure([table], {"margin": {"l": 8, "r": 8, "t": 8, "b": 8}})

    def _repr_html_(self) -> str:
        def cells(tag: str, values: Iterable[Any]) -> str:
            return "".join(f"<{tag}>{html.escape(_shown(value))}</{tag}>" for value in values)

        head = cells("th", [heading for _, heading, _ in COLUMNS])
        body = "".join(f"<tr>{cells('td', row.values())}</tr>" for row in self.rows)
        caption = f"{len(self.rows)} of {self.total:,} features"
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return "" if value is None else visible(str(value))[:MOST_SHOWN]


@dataclass(frozen=True)
class Explorer:
    """The panels of a feature store, for notebooks and scripts. Every panel has `.figure`, plotly's own object."""

    store: FeatureStore = field(repr=False)
    metrics: Path | None = None  # of the run, for its training curves
    fire: Callable[[str], PromptFirings] | None = field(default=None, repr=False)  # runs the model
    match: Callable[[Path | str], Comparison] | None = field(default=None, repr=False)  # with another's features

    def feature(self, feature: int) -> FeaturePanel:
        """One feature. DataError where the store has none of that number."""
        return FeaturePanel(self.store, self.store.feature(feature).feature)

    def density(self) -> Panel:
        """How many features fire how often."""
        return density_histogram(self.store)

    def map(self) -> Panel:
        """Every feature at its place in the plane."""
        return feature_map(self.store)

    def table(self, sort: str = "-density", search: str = "", limit: int = 20) -> TablePanel:
        """Features by a column (`-` before it: descending) that have the words, or `density>0.01` and the like."""
        page = self.store.table(sort, Filter(text=search), limit=limit)
        return TablePanel(table_rows(page.rows), page.total)

    def training(self) -> Panels:
        """The curves of the run. FormatError where there is no run, or it has logged nothing."""
        if self.metrics is None:
            raise FormatError("these features belong to no run, so there are no training curves.")
        return Panels(tuple(training_curves(read_metrics(self.metrics))))

    def prompt(self, text: str) -> PromptPanel:
        """Which features fire on a text. FormatError where there is no model to run."""
        if self.fire is None:
            raise FormatError("these features were opened without their model: explore the run, not its store.")
        return PromptPanel(self.fire(text))

    def compare(self, other: Path | str) -> Panel:
        """How alike the features of another run, checkpoint or dictionary are; `partners` names the pairs."""
        return cosine_histogram(self._matched(other))

    def partners(self, other: Path | str) -> list[tuple[int, int, float]]:
        """(feature, its partner in the other dictionary, cosine), the least alike first; -1: none."""
        found = self._matched(other)
        order = found.cosine_F.argsort(kind="stable").tolist()
        return [(feature, int(found.partner_F[feature]), float(found.cosine_F[feature])) for feature in order]

    def _matched(self, other: Path | str) -> Comparison:
        if self.match is None:
            raise FormatError("these features were opened without their dictionary: explore the run, not its store.")
        return self.match(other)

    def label(self, feature: int, label: str, note: str = "") -> None:
        """Name a feature; kept beside the store."""
        self.store.annotate(feature, label, note)

    def _repr_html_(self) -> str:
        info = self.store.info
        facts = f"{info.n_features:,} features of {info.kind} at {info.spec.point}, over {info.n_tokens:,} tokens"
        return f"<p><b>{html.escape(info.title)}</b><br>{html.escape(facts)}</p>{self.table(limit=10)._repr_html_()}"
