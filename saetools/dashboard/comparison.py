"""The features of another dictionary, or of another checkpoint, beside ours. No torch here."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from saetools.dashboard.panel import NEGATIVE, Panel, layout, number
from saetools.dashboard.views import feature_view
from saetools.features.store import FeatureStore, Filter

MAX_ROWS = 300
N_BINS = 40


@dataclass(frozen=True)
class Comparison:
    """Another dictionary beside this one: for each feature its partner there (-1: none) and their cosine."""

    title: str
    partner_F: np.ndarray
    cosine_F: np.ndarray
    store: FeatureStore | None = None  # of the other dictionary, where there is one
    how: str = "matched one to one by the cosine of their decoder rows"

    def partner(self, feature: int) -> int | None:
        """The feature there, or None."""
        known = 0 <= feature < len(self.partner_F) and self.partner_F[feature] >= 0
        return int(self.partner_F[feature]) if known else None


def comparison_view(
    comparison: Comparison, store: FeatureStore, features: Collection[int] | None = None
) -> dict[str, Any]:
    """What pages draw of it: how alike the partners are, and the pairs with their names, the least alike first.

    `store`: of our side. `features`: those that the page has; None: all. Of more than 300 the two ends are listed.
    """
    order = np.argsort(comparison.cosine_F, kind="stable").tolist()
    if features is not None:
        chosen = set(features)
        order = [feature for feature in order if feature in chosen]
    shown = order[: MAX_ROWS // 2] + order[-MAX_ROWS // 2 :] if len(order) > MAX_ROWS else order
    cut = "" if len(shown) == len(order) else f" Of {len(order):,} the {MAX_ROWS // 2} least and most alike are listed."
    partners = [int(comparison.partner_F[feature]) for feature in shown]
    ours, theirs = _names(store, shown), _names(comparison.store, partners)
    return {
        "title": comparison.title,
        "note": f"Features are {comparison.how}.{cut}",
        "histogram": cosine_histogram(comparison).to_json(),
        "rows": [
            [feature, partner, float(comparison.cosine_F[feature]), ours.get(feature, ""), theirs.get(partner, "")]
            for feature, partner in zip(shown, partners, strict=True)
        ],
    }


def _names(store: FeatureStore | None, features: Sequence[int]) -> dict[int, str]:
    """Label, or else top token, by feature."""
    if store is None or not features:
        return {}
    rows = store.table("feature", Filter(features=features), limit=len(features)).rows
    return {row.feature: row.label or row.peak_token or "" for row in rows}


def partner_view(comparison: Comparison, feature: int, per_band: dict[str, int] | None = None) -> dict[str, Any] | None:
    """What a page shows of a feature's partner; None where there is none, or nothing is known of it."""
    partner = comparison.partner(feature)
    if partner is None or comparison.store is None:
        return None
    view = feature_view(comparison.store, partner, per_band)
    return {"view": view, "cosine": float(comparison.cosine_F[feature])}


def cosine_histogram(comparison: Comparison) -> Panel:
    """How alike the partners are; the axis ends at the least alike pair, so that alike checkpoints spread too."""
    matched = comparison.cosine_F[comparison.partner_F >= 0].astype(np.float64)
    low = min(float(matched.min(initial=1.0)), 1.0 - 1e-4)
    counts, edges = np.histogram(np.clip(matched, low, 1.0), bins=N_BINS, range=(low, 1.0))
    spans = [f"{a:.4f} to {b:.4f}" for a, b in pairwise(edges.tolist())]
    bar = {
        "type": "bar",
        "x": ((edges[1:] + edges[:-1]) / 2).tolist(),
        "y": counts.tolist(),
        "width": float(edges[1] - edges[0]),
        "customdata": spans,
        "hovertemplate": "cosine %{customdata}<br>%{y} features<extra></extra>",
        "marker": {"color": NEGATIVE},
    }
    alone = int((comparison.partner_F < 0).sum())
    note = f"median {number(float(np.median(matched)) if len(matched) else None)}"
    note += f", {alone:,} features have no partner" if alone else ""
    rows = tuple(zip(spans, counts.tolist(), strict=True))
    shape = layout("cosine of partners", "features", {"range": [low, 1.0]})
    return Panel("Cosine of partners", [bar], shape, ("cosine", "features"), rows, note)
