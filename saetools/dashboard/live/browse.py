"""The table of all features, and the view of one with its label and note."""

import json
from typing import Any

import dash_ag_grid as dag
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from flask import Response, request

from saetools.dashboard.annotations import labels_csv, labels_json
from saetools.dashboard.panel import visible
from saetools.dashboard.panels import density_histogram
from saetools.dashboard.views import COLUMNS, feature_view
from saetools.errors import SaetoolsError
from saetools.features.store import FeatureStore, Filter

NUMBERS = {"function": "params.value == null ? '' : d3.format('.3~g')(params.value)"}
WIDTHS = {"feature": 72, "peak_token": 104, "label": 92, "density": 106, "max_value": 62, "mean": 68, "kurtosis": 84}


def table_layout(store: FeatureStore) -> html.Div:
    """Density histogram, search, and a table that loads what is scrolled to. Labels get a column with the first."""
    labelled = bool(store.annotations())
    return html.Div(
        [
            html.Div(id="sae-density"),
            dcc.Store(id="density-drawn"),
            dcc.Store(id="density-panel", data=[density_histogram(store).to_json()]),
            html.Div(
                [
                    html.Div(id="sae-search-box"),  # a field of live.js
                    dcc.Store(id="search", data=""),
                    dcc.Input(id="list-choice", list="list-names", placeholder="List", debounce=0.25, size="9"),
                    html.Datalist([html.Option(value=name) for name in store.lists()], id="list-names"),
                    dcc.Store(id="list-filter"),
                ],
                className="sae-search-row",
            ),
            html.Div([html.Span(id="sae-count", className="sae-dim", role="status")], className="sae-count-row"),
            dag.AgGrid(
                id="table",
                className="ag-theme-quartz-auto-dark sae-grid",
                columnDefs=[_column(*column, hidden=column[0] == "label" and not labelled) for column in COLUMNS],
                rowModelType="infinite",
                getRowId="'' + params.data.feature",
                dangerously_allow_code=False,
                dashGridOptions={
                    "cacheBlockSize": 100,
                    "maxBlocksInCache": 20,
                    "rowHeight": 30,
                    "headerHeight": 34,
                    "rowSelection": {"mode": "singleRow", "checkboxes": False, "enableClickSelection": True},
                    "suppressCellFocus": False,
                    "animateRows": False,
                },
            ),
        ],
        className="sae-side",
        role="navigation",
        **aria("Features"),
    )


def feature_layout() -> html.Div:
    """The view of the selected feature; scripts draw into `sae-feature`."""
    return html.Div(
        [
            html.Div(
                [
                    html.Div(
                        [
                            html.H2("Choose a feature", id="sae-feature-title", **live()),
                            html.Span(id="label-shown", className="sae-name"),
                        ],
                        className="sae-feature-name",
                    ),
                    html.Span(
                        [
                            html.Button("Previous", id="sae-previous", className="sae-button", title="k"),
                            html.Button("Next", id="sae-next", className="sae-button", title="j"),
                        ],
                        className="sae-steps",
                    ),
                ],
                className="sae-feature-head",
            ),
            html.Details(
                [
                    html.Summary("Label and note"),
                    html.Div(
                        [
                            dcc.Input(id="label", type="text", placeholder="Label", maxLength=200),
                            dcc.Textarea(id="note", placeholder="Note", maxLength=10_000, className="sae-text"),
                            html.Div(
                                [
                                    html.Button("Save", id="save-label", className="sae-button sae-primary"),
                                    html.Span(id="label-status", className="sae-dim", role="status"),
                                    html.Span("All labels:", className="sae-dim sae-right"),
                                    html.Button("CSV", id="labels-csv", className="sae-button"),
                                    html.Button("JSON", id="labels-json", className="sae-button"),
                                ],
                                className="sae-form-row",
                            ),
                            dcc.Download(id="labels-file"),
                        ],
                        className="sae-form",
                    ),
                ],
                className="sae-details sae-label-box",
            ),
            html.Div(id="sae-feature", className="sae-feature"),
            dcc.Store(id="selected"),
            dcc.Store(id="started"),
            dcc.Store(id="to-save"),
            dcc.Store(id="saved"),
            dcc.Store(id="saved-shown"),
        ]
    )


def register(app: Dash, store: FeatureStore) -> None:
    """The callbacks of both."""

    @app.callback(
        Output("table", "getRowsResponse"),
        Output("sae-count", "children"),
        Input("table", "getRowsRequest"),
        State("search", "data"),
        State("list-filter", "data"),
    )
    def rows(asked: dict[str, Any] | None, text: str | None, features: list[int] | None) -> Any:
        if asked is None:
            return no_update, no_update
        sort = asked.get("sortModel") or [{"colId": "density", "sort": "desc"}]
        column = ("-" if sort[0]["sort"] == "desc" else "") + str(sort[0]["colId"])
        offset, end = int(asked["startRow"]), int(asked["endRow"])
        try:
            found = store.table(column, Filter(text or "", features=features), offset, min(end - offset, 1000))
        except SaetoolsError as error:
            return {"rowData": [], "rowCount": 0}, str(error)
        data = [{name: _shown(getattr(row, name)) for name, _, _ in COLUMNS} for row in found.rows]
        return {"rowData": data, "rowCount": found.total}, f"{found.total:,} of {store.info.n_features:,}"

    @app.server.get("/view/<int(signed=True):feature>")
    def view(feature: int) -> Response:
        """What is drawn of a feature, for the page's own script."""
        try:
            shown = feature_view(store, feature)
        except SaetoolsError as error:
            shown = {"error": str(error)}
        text = json.dumps(shown, separators=(",", ":"), allow_nan=False)
        return Response(text, mimetype="application/json", headers={"Cache-Control": "no-store"})

    @app.server.post("/find")
    def find() -> dict[str, int | None]:
        """The first feature that a search finds; null where there is none."""
        asked = request.get_json()
        try:
            rows = store.table(asked["sort"], Filter(asked["text"], features=asked["features"]), limit=1).rows
        except SaetoolsError:
            rows = ()
        return {"feature": rows[0].feature if rows else None}

    @app.callback(
        Output("label-status", "children"),
        Output("saved", "data"),
        Input("to-save", "data"),
        prevent_initial_call=True,
    )
    def save(written: dict[str, Any]) -> Any:
        if written["feature"] is None:
            return "select a feature first", no_update
        try:
            store.annotate(int(written["feature"]), written["label"] or "", written["note"] or "")
        except SaetoolsError as error:
            return str(error), no_update
        return "saved", written

    @app.callback(
        Output("labels-file", "data"),
        Input("labels-csv", "n_clicks"),
        Input("labels-json", "n_clicks"),
        prevent_initial_call=True,
    )
    def download(_: int | None, __: int | None) -> dict[str, str]:
        if ctx.triggered_id == "labels-csv":
            return {"content": labels_csv(store), "filename": "labels.csv", "type": "text/csv"}
        return {"content": labels_json(store), "filename": "labels.json", "type": "application/json"}

    app.clientside_callback(ClientsideFunction("saetools", "start"), Output("started", "data"), Input("table", "id"))
    app.clientside_callback(
        ClientsideFunction("saetools", "toSave"),
        Output("to-save", "data"),
        Input("save-label", "n_clicks"),
        State("label", "value"),
        State("note", "value"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("saetools", "showSaved"), Output("saved-shown", "data"), Input("saved", "data")
    )
    app.clientside_callback(
        ClientsideFunction("saetools", "drawDensity"), Output("density-drawn", "data"), Input("density-panel", "data")
    )
    app.clientside_callback(
        ClientsideFunction("saetools", "refetch"),
        Output("table", "className"),
        Input("search", "data"),
        Input("list-filter", "data"),
        prevent_initial_call=True,
    )

    @app.callback(Output("list-filter", "data"), Input("list-choice", "value"), prevent_initial_call=True)
    def choose_list(name: str | None) -> list[int] | None:
        return store.lists().get(name, []) if name else None


def aria(label: str) -> Any:
    """The name of a region for those who do not see it."""
    return {"aria-label": label}


def live() -> Any:
    """A region whose changes are read out."""
    return {"aria-live": "polite"}


def _column(name: str, heading: str, about: str, hidden: bool) -> dict[str, Any]:
    column: dict[str, Any] = {
        "field": name,
        "headerName": heading,
        "headerTooltip": about,
        "hide": hidden,
        "sortable": name in (*FeatureStore.sortable, "label"),
    }
    if name == "density":
        column["sort"] = "desc"
    if name in {"peak_token", "top_logit"}:
        column["cellClass"] = "sae-token-cell"
    if name in FeatureStore.sortable and name != "feature":
        column["valueFormatter"] = NUMBERS
        column["type"] = "rightAligned"
    return column | {"width": WIDTHS.get(name, 120)}


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value
