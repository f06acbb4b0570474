"""A page that can be mailed: one HTML file that opens from disk and makes no network request. No torch here."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from saetools.atomic import write_text
from saetools.dashboard.panel import CONFIG
from saetools.dashboard.panels import density_histogram
from saetools.dashboard.views import COLUMNS, feature_view, table_rows
from saetools.errors import DataError
from saetools.features.store import FeatureStore, Filter, TableRow
from saetools.rng import generator

SCRIPTS = ("token.js", "feature.js", "page.js")
PER_BAND = {"top": 12, "q5": 3, "q4": 3, "q3": 3, "q2": 3, "q1": 3, "uniform": 2}


def export_page(
    store: FeatureStore,
    path: Path | str,
    n_features: int = 200,
    features: Sequence[int] | None = None,
    per_band: dict[str, int] | None = None,
    seed: int = 0,
) -> None:
    """Write one self-contained page of `features`, or of a seeded random sample of those that fire.

    About 4.9 MB for plotly and 25 kB a feature. `per_band` limits the examples shown of each band. Raises DataError
    where no feature can be shown, RunError where the file cannot be written; then an old file is as it was.
    """
    chosen = list(features) if features is not None else _sample(store, n_features, seed)
    rows = store.table("feature", Filter(features=chosen), limit=len(chosen)).rows
    if not rows:
        raise DataError("there is no feature to show: none of the store fires, or none was asked for.")
    write_text(path, _page(store, rows, per_band or PER_BAND, features is None))


def _sample(store: FeatureStore, n_features: int, seed: int) -> list[int]:
    """A uniform sample of the features that fire; all of them where there are no more than n_features."""
    alive = (store.columns("count")["count"] > 0).nonzero()[0]
    order = generator(seed, "features of the page").permutation(len(alive))
    return sorted(alive[order[:n_features]].tolist())


def _page(store: FeatureStore, rows: Sequence[TableRow], per_band: dict[str, int], sampled: bool) -> str:
    views = {row.feature: feature_view(store, row.feature, per_band) for row in rows}
    lines = table_rows(rows)
    for line in lines:
        line["search"] = _search_text(views[line["feature"]])
    page = {
        "columns": COLUMNS,
        "rows": lines,
        "density": density_histogram(store).to_json(),
        "config": CONFIG,
    }
    data = [_data("sae-page", page)] + [_data(f"sae-feature-{feature}", view) for feature, view in views.items()]
    scripts = [_plotly(), *(asset(name) for name in SCRIPTS)]
    how = "a uniform random sample of those that fire" if sampled else "chosen by number"
    return fill(
        asset("page.html"),
        policy=policy(scripts),
        title=_escaped(store.info.title),
        facts="".join(f"<li>{name} <b>{_escaped(value)}</b></li>" for name, value in facts(store)),
        selection=f"This file holds {len(rows):,} of {store.info.n_features:,} features: {how}.",
        style=asset("style.css"),
        data="\n".join(data),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def facts(store: FeatureStore) -> list[tuple[str, str]]:
    """What the header of every page says of the store."""
    info = store.info
    return [
        ("dictionary", info.kind),
        ("features", f"{info.n_features:,}"),
        ("host", info.spec.host),
        ("point", info.spec.point),
        ("tokens read", f"{info.n_tokens:,}"),
    ]


def policy(scripts: Sequence[str]) -> str:
    """Content security policy: these scripts, known by their hash, and nothing else; no request to anywhere."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    rules = {
        "default-src": "'none'",
        "script-src": hashes,
        "style-src": "'unsafe-inline'",  # plotly writes style sheets
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def inline_json(value: Any) -> str:
    """JSON that is safe inside a script element: ASCII, and < > & as escapes, so that no text ends or opens one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def fill(template: str, **parts: str) -> str:
    """The template with each {{name}} replaced once; what is put in is not looked at again."""
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def _escaped(text: str) -> str:
    """Text as HTML; lone surrogates, which UTF-8 cannot hold, as question marks."""
    return html.escape(text).encode("utf-8", "replace").decode()


@cache
def asset(name: str) -> str:
    """The text of a file in dashboard/assets."""
    return (files("saetools.dashboard") / "assets" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js with line ends as an HTML parser makes them: the policy's hash is of what the parser hands on."""
    return get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")


def _data(name: str, value: Any) -> str:
    return f'<script type="application/json" id="{name}">{inline_json(value)}</script>'


def _search_text(view: dict[str, Any]) -> str:
    """What the page's search looks through: logit tokens and the text of the strongest contexts."""
    logits = view["logits"] or {"top": []}
    contexts = ["".join(example["tokens"]) for band in view["bands"][:1] for example in band["examples"][:3]]
    return " ".join([*(token for token, _ in logits["top"]), *contexts])[:600]
