"""The app put together: one page, tabs for what was handed in, and a server that listens to this machine alone."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.resources import files
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, dcc, html
from flask import Response
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from saetools.dashboard.export import facts
from saetools.dashboard.inline import asset, plotly_script
from saetools.dashboard.live import browse, model_tabs, panels_tabs
from saetools.dashboard.live.guard import Guard, check_address, names_of, policy, reachable, token_query
from saetools.dashboard.live.subject import Subject
from saetools.errors import RunError

INDEX = """<!doctype html>
<html lang="en">
<head>
{%metas%}
<meta name="color-scheme" content="light dark">
<title>{%title%}</title>
{%css%}
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/assets/style.css">
<link rel="stylesheet" href="/assets/live.css">
</head>
<body>
{%app_entry%}
HELP
<footer>{%config%}
<script src="/assets/token.js"></script>
<script src="/assets/shell.js"></script>
<script src="/assets/map.js"></script>
<script src="/assets/bars.js"></script>
<script src="/assets/feature.js"></script>
<script src="/assets/live.js"></script>
{%scripts%}{%renderer%}</footer>
</body>
</html>"""


def make_app(subject: Subject) -> Dash:
    """The Dash app of a store, with tabs for the callables and files that the subject has."""
    with _without_environment():
        app = Dash(
            "saetools",
            assets_folder=str(files("saetools.dashboard") / "assets"),
            include_assets_files=False,
            index_string=INDEX.replace("HELP", asset("help.html")),
            title="saetools",
            update_title="",
            serve_locally=True,
            enable_mcp=False,
            suppress_callback_exceptions=True,
            websocket_callbacks=False,
        )
    app.server.add_url_rule("/plotly.js", view_func=_plotly)
    tabs = _tabs(subject)
    app.layout = _layout(subject, tabs)
    app.clientside_callback(
        ClientsideFunction("saetools", "showTab"), Output("tab-shown", "data"), Input("tab", "data")
    )
    if subject.store is not None:
        browse.register(app, subject.store)
        panels_tabs.register_map(app, subject.store)
        model_tabs.register(app, subject, subject.store)
    if subject.comparison is not None:
        panels_tabs.register_comparison(app, subject.comparison)
    if subject.metrics is not None:
        panels_tabs.register_curves(app, subject.metrics)
    return app


@contextmanager
def _without_environment() -> Iterator[None]:
    """Hides DASH_... from Dash, which takes prefixes of paths, addresses of assets and more from them."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("DASH_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def make_guarded(subject: Subject, host: str = "127.0.0.1", token: str | None = None) -> Guard:
    """The app behind its guard."""
    check_address(host, token)
    app = make_app(subject)
    return Guard(app.server, names_of(host), policy(app.csp_hashes()), token)


def serve(
    subject: Subject,
    host: str = "127.0.0.1",
    port: int = 8050,
    token: str | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until interrupted. `started` is called with the address. Environment variables change nothing."""
    server = listen(make_guarded(subject, host, token), host, port)
    name = reachable(host)
    shown = f"http://{f'[{name}]' if ':' in name else name}:{server.server_port}/"
    started(f"{shown}{token_query(token)}" if token else shown)
    try:
        server.serve_forever()
    finally:
        server.server_close()


def listen(guard: Guard, host: str, port: int) -> BaseWSGIServer:
    """A threaded server on the address, not yet serving; port 0 takes a free one. RunError where there can be none."""
    said = io.StringIO()  # werkzeug prints the cause and exits
    try:
        if not 0 <= port < 1 << 16:  # of a greater one some resolvers take the last 16 bits
            raise OverflowError("a port is one of 0 to 65535")
        with redirect_stderr(said):
            return make_server(host, port, guard, threaded=True, request_handler=_Quiet)
    except (SystemExit, OverflowError) as error:
        cause = said.getvalue().partition("\n")[0] or error
        raise RunError(
            f"cannot listen on {host}, port {port}: {cause}. Choose another --port (0 takes a free one) or --host."
        ) from error


class _Quiet(WSGIRequestHandler):
    """Logs errors, not every request: addresses may hold the token."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def _tabs(subject: Subject) -> dict[str, html.Div]:
    """The content of each tab by its title, for what the subject has."""
    tabs = {"Feature": browse.feature_layout(), "Map": panels_tabs.map_layout()} if subject.store else {}
    if subject.fire is not None:
        tabs["Prompt"] = model_tabs.prompt_layout()
    if subject.steer is not None:
        tabs["Steering"] = model_tabs.steering_layout()
    if subject.comparison is not None and subject.store is not None:
        tabs["Compare"] = panels_tabs.comparison_layout(subject.comparison, subject.store)
    if subject.metrics is not None:
        tabs["Training"] = panels_tabs.curves_layout()
    return tabs


def _plotly() -> Response:
    """The same plotly.js as in exported pages, asked for with the first curves."""
    return Response(plotly_script(), mimetype="text/javascript", headers={"Cache-Control": "private, max-age=86400"})


def _layout(subject: Subject, tabs: dict[str, html.Div]) -> html.Div:
    store = subject.store
    known = (
        facts(store) if store else [("run", "trains, no checkpoint yet: start this again later to see its features")]
    )
    header = [html.Li([f"{name} ", html.B(value)]) for name, value in known]
    aria: Any = {name: {"aria-controls": f"panel-{name}", "aria-selected": "false"} for name in tabs}
    buttons = [
        html.Button(name, id=f"tab-{name}", role="tab", className="sae-tab-button", **aria[name]) for name in tabs
    ]
    labelled: Any = {name: {"aria-labelledby": f"tab-{name}"} for name in tabs}
    headings = {name: html.H2(name, className="sae-unseen") for name in tabs if name != "Feature"}  # which has its own
    panels = [
        html.Div([headings.get(name), tabs[name]], id=f"panel-{name}", role="tabpanel", hidden=True, **labelled[name])
        for name in tabs
    ]
    return html.Div(
        [
            html.Header(
                [
                    html.H1(store.info.title if store else subject.title),
                    html.Ul(header, className="sae-facts"),
                    html.Button(["Keys ", html.Kbd("?")], id="sae-help-open", className="sae-button"),
                ],
                className="sae-header",
            ),
            html.Div(
                [
                    *([browse.table_layout(store)] if store else []),
                    html.Main(
                        [
                            html.Div(buttons, role="tablist", id="tabs", className="sae-tabs"),
                            dcc.Store(id="tab", data=next(iter(tabs))),
                            dcc.Store(id="tab-shown"),
                            *panels,
                        ],
                        id="sae-main",
                    ),
                ],
                className="sae-layout" if store else "",
            ),
        ]
    )
