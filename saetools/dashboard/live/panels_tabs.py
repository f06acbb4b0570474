"""Tabs that need no model: the map, the comparison with another dictionary, the training curves."""

from pathlib import Path
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from saetools.dashboard.comparison import Comparison, comparison_view, partner_view
from saetools.dashboard.curves import read_metrics, training_curves
from saetools.dashboard.panels import map_points
from saetools.errors import SaetoolsError
from saetools.features.store import FeatureStore

REFRESH_MILLISECONDS = 5_000


def map_layout() -> html.Div:
    """The map is made when its tab is first opened: at a million features it is not small."""
    return html.Div(
        [
            html.H3("Map of features"),
            html.P(id="map-note", className="sae-note"),
            html.Div(id="sae-map"),
            dcc.Store(id="map-points"),
            dcc.Store(id="map-drawn"),
            html.Div(
                [
                    dcc.Input(id="list-name", type="text", placeholder="Name of the list", maxLength=100),
                    html.Button("Keep the selection as a list", id="list-save", className="sae-button"),
                    html.Span(id="list-status", className="sae-dim", role="status"),
                ],
                className="sae-form-row",
            ),
        ],
        className="sae-card sae-form",
    )


def register_map(app: Dash, store: FeatureStore) -> None:
    made: dict[str, dict[str, Any]] = {}  # by what its names are of: the points of the newest labels

    @app.callback(
        Output("map-points", "data"),
        Output("map-note", "children"),
        Input("tab", "data"),
        State("map-drawn", "data"),
    )
    def show(tab: str, drawn: str | None) -> Any:
        if tab != "Map":
            return no_update, no_update
        names = str(hash(tuple(store.annotations().items())))
        if drawn == names:
            return no_update, no_update
        points = made.get(names) or map_points(store) | {"names": names}
        made.clear()
        made[names] = points
        return points, points["title"]

    app.clientside_callback(
        ClientsideFunction("saetools", "drawMap"), Output("map-drawn", "data"), Input("map-points", "data")
    )

    @app.callback(
        Output("list-names", "children"),
        Output("list-status", "children"),
        Input("list-save", "n_clicks"),
        State("list-name", "value"),
        State("list-filter", "data"),
        prevent_initial_call=True,
    )
    def keep(_: int, name: str | None, features: list[int] | None) -> Any:
        if not name or not features:
            return no_update, "select features and give a name"
        try:
            store.set_list(name, features)
        except SaetoolsError as error:
            return no_update, str(error)
        return [html.Option(value=known) for known in store.lists()], f"kept {len(features):,} features as a list"


def comparison_layout(comparison: Comparison, store: FeatureStore) -> html.Div:
    return html.Div(
        [
            html.Div(id="sae-comparison"),
            dcc.Store(id="comparison-view", data=comparison_view(comparison, store)),
            dcc.Store(id="comparison-drawn"),
            dcc.Store(id="partner-view"),
            dcc.Store(id="partner-drawn"),
        ]
    )


def register_comparison(app: Dash, comparison: Comparison) -> None:
    app.clientside_callback(
        ClientsideFunction("saetools", "drawComparison"),
        Output("comparison-drawn", "data"),
        Input("comparison-view", "data"),
    )

    @app.callback(Output("partner-view", "data"), Input("selected", "data"), Input("tab", "data"))
    def show(feature: int | None, tab: str) -> Any:
        if tab != "Compare" or feature is None:
            return no_update
        return {"feature": feature, "partner": partner_view(comparison, feature)}

    app.clientside_callback(
        ClientsideFunction("saetools", "drawPartner"), Output("partner-drawn", "data"), Input("partner-view", "data")
    )


def curves_layout() -> html.Div:
    return html.Div(
        [
            dcc.Interval(id="curves-tick", interval=REFRESH_MILLISECONDS),
            html.P(id="curves-status", className="sae-note", role="status"),
            html.Div(id="sae-curves", className="sae-curves"),
            dcc.Store(id="curves-panels"),
            dcc.Store(id="curves-drawn"),
            dcc.Store(id="curves-shown"),
        ]
    )


def register_curves(app: Dash, metrics: Path) -> None:
    """Curves are sent when the file was written to: a run that trains is followed, one that ended costs nothing."""

    @app.callback(
        Output("curves-panels", "data"),
        Output("curves-status", "children"),
        Output("curves-drawn", "data", allow_duplicate=True),
        Input("curves-tick", "n_intervals"),
        Input("tab", "data"),
        State("curves-drawn", "data"),
        prevent_initial_call=True,
    )
    def draw(_: int | None, tab: str, drawn: str | None) -> Any:
        if tab != "Training" or (written := _written(metrics)) == drawn:
            return no_update, no_update, no_update
        try:
            records = read_metrics(metrics)
        except SaetoolsError as error:
            return no_update, str(error), no_update
        status = "" if records else "The run has not logged a step yet; this view looks again every 5 seconds."
        return [panel.to_json() for panel in training_curves(records)], status, written

    app.clientside_callback(
        ClientsideFunction("saetools", "drawCurves"), Output("curves-shown", "data"), Input("curves-panels", "data")
    )


def _written(file: Path) -> str:
    """Another text after each write to the file."""
    try:
        found = file.stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
