"""The map, the comparison with another dictionary, and the training curves."""

from pathlib import Path
from typing import Any

import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from saetools.dashboard.curves import read_metrics, training_curves
from saetools.dashboard.live.browse import aria
from saetools.dashboard.live.subject import Comparison
from saetools.dashboard.panel import CONFIG, NEGATIVE, Panel, layout, number
from saetools.dashboard.panels import feature_map
from saetools.dashboard.views import feature_view
from saetools.errors import SaetoolsError
from saetools.features.store import FeatureStore

REFRESH_MILLISECONDS = 5_000
COMPARED_ROWS = 300


def map_layout() -> html.Div:
    """The map is made when its tab is first opened: at a million features it is not small."""
    config = CONFIG | {"displayModeBar": True, "modeBarButtonsToRemove": ["toImage"], "scrollZoom": True}
    return html.Div(
        [
            html.H3("Map of features", id="map-title"),
            html.P("Draw a lasso to put features into the table; click one to open it.", className="sae-note"),
            dcc.Graph(id="map", config=config, className="sae-map"),
            dcc.Store(id="map-panel"),
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
    app.clientside_callback(
        ClientsideFunction("saetools", "themedFigure"), Output("map", "figure"), Input("map-panel", "data")
    )
    made: list[Panel] = []

    @app.callback(Output("map-panel", "data"), Output("map-title", "children"), Input("tab", "data"))
    def show(tab: str) -> Any:
        if tab != "Map":
            return no_update, no_update
        if not made:
            made.append(feature_map(store))
        return made[0].to_json() | {"rows": []}, made[0].title

    @app.callback(
        Output("list-filter", "data", allow_duplicate=True),
        Output("list-status", "children"),
        Input("map", "selectedData"),
        prevent_initial_call=True,
    )
    def lasso(selection: dict[str, Any] | None) -> Any:
        if not selection or not selection.get("points"):
            return None, ""
        features = [int(point["customdata"]) for point in selection["points"]]
        return features, f"{len(features):,} features in the table"

    @app.callback(
        Output("selected", "data", allow_duplicate=True), Input("map", "clickData"), prevent_initial_call=True
    )
    def click(data: dict[str, Any] | None) -> Any:
        return int(data["points"][0]["customdata"]) if data else no_update

    @app.callback(
        Output("list-names", "children"),
        Output("list-status", "children", allow_duplicate=True),
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


def comparison_layout(store: FeatureStore, comparison: Comparison) -> html.Div:
    rows = [
        {"feature": index, "partner": int(comparison.partner_F[index]), "cosine": float(comparison.cosine_F[index])}
        for index in np.argsort(comparison.cosine_F, kind="stable").tolist()
    ]
    shown = rows[: COMPARED_ROWS // 2] + rows[-COMPARED_ROWS // 2 :] if len(rows) > COMPARED_ROWS else rows
    note = "" if len(shown) == len(rows) else f" The {COMPARED_ROWS // 2} least and most alike are listed."
    return html.Div(
        [
            html.H3(["Beside ", comparison.title]),
            html.P("Features matched one to one by the cosine of their decoder rows." + note, className="sae-note"),
            html.Div(id="comparison"),
            dcc.Store(id="comparison-panels", data=[cosine_histogram(comparison).to_json()]),
            dcc.Store(id="comparison-drawn"),
            html.Div(
                html.Table(
                    [
                        html.Thead(html.Tr([html.Th(h, scope="col") for h in ("Feature", "Partner", "Cosine")])),
                        html.Tbody([_compared_row(row) for row in shown]),
                    ],
                    className="sae-table",
                ),
                className="sae-table-box sae-compared",
                tabIndex=0,
                role="region",
                **aria("Matched features"),
            ),
            html.H3("The partner of the selected feature", id="partner-title"),
            html.Div(id="sae-partner", className="sae-feature"),
            dcc.Store(id="partner-view"),
            dcc.Store(id="partner-drawn"),
        ],
        className="sae-card sae-form",
    )


def cosine_histogram(comparison: Comparison) -> Panel:
    """How alike the partners are."""
    matched = comparison.cosine_F[comparison.partner_F >= 0]
    counts, edges = np.histogram(matched, bins=40, range=(-1, 1))
    bar = {"type": "bar", "x": ((edges[1:] + edges[:-1]) / 2).tolist(), "y": counts.tolist()}
    shape = layout("cosine of partners", "features")
    rows = tuple(zip([number(edge) for edge in edges[:-1]], counts.tolist(), strict=True))
    return Panel(
        "Cosine of partners", [bar | {"marker": {"color": NEGATIVE}}], shape, ("cosine from", "features"), rows
    )


def register_comparison(app: Dash, comparison: Comparison) -> None:
    app.clientside_callback(
        ClientsideFunction("saetools", "drawComparison"),
        Output("comparison-drawn", "data"),
        Input("comparison-panels", "data"),
    )
    if comparison.store is None:
        return
    other = comparison.store

    @app.callback(
        Output("partner-view", "data"),
        Output("partner-title", "children"),
        Input("selected", "data"),
        Input("tab", "data"),
    )
    def show(feature: int | None, tab: str) -> Any:
        if tab != "Compare":
            return no_update, no_update
        if feature is None or not 0 <= feature < len(comparison.partner_F) or comparison.partner_F[feature] < 0:
            return no_update, "The selected feature has no partner"
        partner = int(comparison.partner_F[feature])
        return feature_view(other, partner), f"Feature {partner} there, cosine {number(comparison.cosine_F[feature])}"

    app.clientside_callback(
        ClientsideFunction("saetools", "drawPartner"), Output("partner-drawn", "data"), Input("partner-view", "data")
    )


def curves_layout() -> html.Div:
    return html.Div(
        [
            dcc.Interval(id="curves-tick", interval=REFRESH_MILLISECONDS),
            html.P(id="curves-status", className="sae-note", role="status"),
            html.Div(id="curves", className="sae-curves"),
            dcc.Store(id="curves-panels"),
            dcc.Store(id="curves-drawn"),
        ],
        className="sae-card sae-form",
    )


def register_curves(app: Dash, metrics: Path) -> None:
    @app.callback(
        Output("curves-panels", "data"),
        Output("curves-status", "children"),
        Input("curves-tick", "n_intervals"),
        Input("tab", "data"),
    )
    def draw(_: int | None, tab: str) -> Any:
        if tab != "Training":
            return no_update, no_update
        try:
            panels = training_curves(read_metrics(metrics))
        except SaetoolsError as error:
            return no_update, str(error)
        return [panel.to_json() for panel in panels], "" if panels else "The run has not logged a step yet."

    app.clientside_callback(
        ClientsideFunction("saetools", "drawCurves"), Output("curves-drawn", "data"), Input("curves-panels", "data")
    )


def _compared_row(row: dict[str, Any]) -> html.Tr:
    link = html.A(f"#{row['feature']}", href=f"#{row['feature']}")
    return html.Tr([html.Td(link), html.Td(f"#{row['partner']}"), html.Td(number(row["cosine"]))])
