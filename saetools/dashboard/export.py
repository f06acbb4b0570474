"""Pages that need no server: one HTML file that can be mailed, or a folder for thousands of features. No torch here."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saetools.atomic import MANIFEST, committed_directory, make_directory, write_text
from saetools.dashboard.comparison import Comparison, comparison_view, partner_view
from saetools.dashboard.inline import (
    asset,
    data_element,
    escaped,
    fill,
    packed,
    packed_element,
    plotly_script,
    policy,
)
from saetools.dashboard.panel import Panel
from saetools.dashboard.panels import density_histogram, map_points
from saetools.dashboard.views import COLUMNS, feature_view, table_rows
from saetools.errors import DataError, RunError
from saetools.features.store import FeatureStore, Filter, TableRow, sample_of_firing

SCRIPTS = ("token.js", "shell.js", "map.js", "bars.js", "feature.js", "page.js")
PER_BAND = {"top": 12, "q5": 3, "q4": 3, "q3": 3, "q2": 3, "q1": 3, "uniform": 2}
FOLDER = "features"


@dataclass(frozen=True)
class Contents:
    """What a page holds: features of a store, and what else is known of the run."""

    store: FeatureStore
    features: Sequence[int] | None = None  # None: a sample of n_features of those that fire
    n_features: int | None = 200  # None: all that fire
    curves: Sequence[Panel] = ()
    comparison: Comparison | None = None
    per_band: dict[str, int] | None = None  # examples shown of each band; None: `PER_BAND`
    seed: int = 0

    def rows(self) -> tuple[TableRow, ...]:
        """Lines of the table. DataError where there are none, or for features that the store does not have."""
        chosen = self.features
        if chosen is None:
            chosen = sample_of_firing(self.store.columns("count")["count"], self.n_features, self.seed)
        rows = self.store.table("feature", Filter(features=chosen), limit=len(chosen)).rows
        if not rows:
            raise DataError("there is no feature to show: none of the store fires, or none was asked for.")
        if unknown := {*map(int, chosen)} - {row.feature for row in rows}:
            raise DataError(f"there is no feature {min(unknown)}: the store has 0 to {self.store.info.n_features - 1}.")
        return rows

    def selection(self, n_shown: int) -> str:
        """Which features the page holds, in words."""
        if n_shown == self.store.info.n_features:
            return f"This page holds all {n_shown:,} features."
        how = "chosen by number"
        if self.features is None:
            how = "all that fire" if self.n_features is None else "a uniform random sample of those that fire"
        return f"This page holds {n_shown:,} of {self.store.info.n_features:,} features: {how}."

    def of_feature(self, feature: int) -> dict[str, Any]:
        """What a page draws of one feature, and of its partner."""
        per_band = self.per_band or PER_BAND
        partner = None if self.comparison is None else partner_view(self.comparison, feature, per_band)
        return {"view": feature_view(self.store, feature, per_band), "partner": partner}


def export_page(contents: Contents, path: Path | str) -> None:
    """Write one self-contained page; about 25 kB a feature, and 4.8 MB for plotly where there are curves.

    It opens from disk and makes no network request. Raises DataError where no feature can be shown, RunError where the
    file cannot be written; then an old file is as it was.
    """
    path, rows = Path(path), contents.rows()
    make_directory(path.parent)
    parts = {row.feature: contents.of_feature(row.feature) for row in rows}
    lines = [_line(row, parts[row.feature]["view"]) for row in rows]
    data = [packed_element(f"sae-feature-{feature}", part) for feature, part in parts.items()]
    write_text(path, _page(contents, lines, data, None))


def export_folder(contents: Contents, path: Path | str) -> None:
    """Write a folder with an index.html and a script of data per feature, for thousands of features.

    It opens from disk, or from any server of files, and reads nothing but itself. Memory is that of the table. Replaces
    a folder that it wrote before; RunError at any other that is not empty, and where something was put into that one.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file. Name a folder, or a page that ends in .html.")
    if path.exists() and any(path.iterdir()) and not _is_ours(path):
        raise RunError(f"{path} holds files that are not of a page of features. Choose another folder, or remove it.")
    rows = contents.rows()
    with committed_directory(path, replace=True) as directory:
        lines = list(_write_features(contents, rows, directory / FOLDER))
        (directory / "index.html").write_text(_page(contents, lines, [], FOLDER), encoding="utf-8")


def _is_ours(path: Path) -> bool:
    """Whether a folder is one that was written here, and nobody put anything beside it (a .git, say) since."""
    if {entry.name for entry in path.iterdir()} != {MANIFEST, "index.html", FOLDER} or not (path / FOLDER).is_dir():
        return False
    return all(entry.suffix == ".js" and entry.stem.isdecimal() for entry in (path / FOLDER).iterdir())


def _write_features(contents: Contents, rows: Sequence[TableRow], folder: Path) -> Iterator[dict[str, Any]]:
    folder.mkdir()
    for row in rows:
        part = contents.of_feature(row.feature)
        script = f'SaePage.receive({row.feature},"{packed(part)}");'
        (folder / f"{row.feature}.js").write_text(script, encoding="utf-8")
        yield _line(row, part["view"])


def _page(contents: Contents, lines: list[dict[str, Any]], data: list[str], folder: str | None) -> str:
    store, shown, lists = contents.store, [line["feature"] for line in lines], contents.store.lists()
    page = {
        "columns": [column for column in COLUMNS if column[0] != "label" or any(line["label"] for line in lines)],
        "rows": lines,
        "bound": {"form": store.bound, "spaced": store.spaced, "columns": store.bounded},
        "lists": {name: sorted({*own} & {*shown}) for name, own in lists.items()},
        "density": density_histogram(store).to_json(),
        "map": map_points(store),
        "curves": [panel.to_json() for panel in contents.curves],
        "comparison": None if contents.comparison is None else comparison_view(contents.comparison, store, shown),
        "whole": len(shown) == store.info.n_features,
        "folder": folder,
    }
    names = ["Feature", "Map"] + ["Compare"] * bool(contents.comparison) + ["Training"] * bool(contents.curves)
    plotly = [plotly_script()] if contents.curves else []  # 4.8 MB; histograms and map do without
    scripts = [*plotly, *(asset(name) for name in SCRIPTS)]
    return fill(
        asset("page.html"),
        policy=policy(scripts, own_files=folder is not None),
        title=escaped(store.info.title),
        facts="".join(f"<li>{name} <b>{escaped(value)}</b></li>" for name, value in facts(store)),
        selection=contents.selection(len(lines)),
        lists=_list_choice(lists),
        tabs="".join(_tab(name, name == "Feature") for name in names),
        help=asset("help.html"),
        style=asset("style.css"),
        data="\n".join([data_element("sae-page", page), *data]),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _list_choice(names: Iterable[str]) -> str:
    """A field for the name of a list, where there are any."""
    options = "".join(f'<option value="{escaped(name)}"></option>' for name in names)
    field = (
        '<input type="text" id="list-choice" class="sae-list" list="list-names" placeholder="List" aria-label="List">'
    )
    return f'{field}<datalist id="list-names">{options}</datalist>' if options else ""


def _tab(name: str, chosen: bool) -> str:
    return (
        f'<button type="button" role="tab" id="tab-{name}" class="sae-tab-button" aria-controls="panel-{name}" '
        f'aria-selected="{str(chosen).lower()}">{name}</button>'
    )


def facts(store: FeatureStore) -> list[tuple[str, str]]:
    """What the header of every page says of the store."""
    info = store.info
    return [
        ("dictionary", info.kind),
        ("features", f"{info.n_features:,}"),
        ("host", info.spec.host_name),
        ("point", info.spec.point),
        ("tokens read", f"{info.n_tokens:,}"),
    ]


def _line(row: TableRow, view: dict[str, Any]) -> dict[str, Any]:
    """A line of the table with what its search looks through: numbers, note, logit tokens, strongest contexts."""
    logits = view["logits"] or {"top": []}
    contexts = ["".join(example["tokens"]) for band in view["bands"][:1] for example in band["examples"][:3]]
    words = " ".join([*(token for token, _ in logits["top"]), *contexts])[:600]
    numbers = {name: getattr(row, name) for name in FeatureStore.sortable}
    return numbers | table_rows([row])[0] | {"note": view["note"], "search": words}
