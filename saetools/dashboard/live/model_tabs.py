"""Tabs that run the model: which features fire on a prompt, and the steering playground."""

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from saetools.dashboard.live.subject import OneAtATime, Steering, Subject
from saetools.errors import SaetoolsError
from saetools.features.store import FeatureStore

MAX_CHARACTERS = 20_000
MAX_NEW_TOKENS = 256
EXAMPLE = "def load(path):\n    "
WAYS = {
    "add": "Add the direction",
    "capped": "Add, keep the norm",
    "clamp": "Clamp the feature",
    "ablate": "Ablate the feature",
    "project": "Remove the direction",
}


def prompt_layout() -> html.Div:
    return html.Div(
        [
            html.Label("Text", htmlFor="prompt-text"),
            dcc.Textarea(id="prompt-text", className="sae-text", maxLength=MAX_CHARACTERS, value=EXAMPLE),
            html.Div(
                [
                    html.Button("Show features", id="prompt-run", className="sae-button sae-primary"),
                    html.Label("hide features denser than", htmlFor="prompt-density"),
                    dcc.Input(id="prompt-density", type="number", value=0.2, min=0, max=1, step="any"),
                    html.Span(id="prompt-status", className="sae-dim", role="status"),
                ],
                className="sae-form-row",
            ),
            html.Div(id="prompt-result"),
            dcc.Store(id="prompt-view"),
            dcc.Store(id="prompt-drawn"),
        ],
        className="sae-card sae-form",
    )


def steering_layout() -> html.Div:
    def field(label: str, control: Any) -> html.Div:
        return html.Div([html.Label(label, htmlFor=control.id), control], className="sae-field")

    slider = dcc.Input(id="steer-strength", type="range", min=-2, max=2, step=0.1, value=1)
    return html.Div(
        [
            html.Label("Prompt", htmlFor="steer-prompt"),
            dcc.Textarea(id="steer-prompt", className="sae-text", maxLength=MAX_CHARACTERS, value=EXAMPLE),
            html.Div(
                [
                    field("Feature", dcc.Input(id="steer-feature", type="number", min=0, step=1)),
                    field("How", dcc.Input(id="steer-how", list="steer-ways", value="add")),
                    html.Datalist([html.Option(label, value=way) for way, label in WAYS.items()], id="steer-ways"),
                    field(
                        "Value (units of the code)", dcc.Input(id="steer-value", type="number", value=10, step="any")
                    ),
                    field(
                        "New tokens", dcc.Input(id="steer-tokens", type="number", value=40, min=1, max=MAX_NEW_TOKENS)
                    ),
                    field(
                        "Temperature",
                        dcc.Input(id="steer-temperature", type="number", value=0, min=0, max=5, step="any"),
                    ),
                ],
                className="sae-fields",
            ),
            html.Div(
                [html.Label(["Strength ", html.B("1", id="steer-shown")], htmlFor="steer-strength"), slider],
                className="sae-slider",
            ),
            html.Div(
                [
                    html.Button("Generate", id="steer-run", className="sae-button sae-primary"),
                    html.Span(id="steer-status", className="sae-dim", role="status"),
                    dcc.Store(id="steer-view"),
                    dcc.Store(id="steer-drawn"),
                ],
                className="sae-form-row",
            ),
            html.Div(
                [
                    html.Div(
                        [html.H3("Baseline"), html.Pre(id="steer-baseline", className="sae-text-result", tabIndex=0)]
                    ),
                    html.Div(
                        [html.H3("Steered"), html.Pre(id="steer-steered", className="sae-text-result", tabIndex=0)]
                    ),
                ],
                className="sae-overview",
            ),
        ],
        className="sae-card sae-form",
    )


def register(app: Dash, subject: Subject) -> None:
    """Callbacks of the tabs whose callables were given. One job uses the model at a time."""
    queue = OneAtATime()
    if subject.fire is not None:
        _register_prompt(app, subject, queue)
    if subject.steer is not None:
        _register_steering(app, subject, queue)


def _register_prompt(app: Dash, subject: Subject, queue: OneAtATime) -> None:
    fire, store = subject.fire, subject.store
    assert fire is not None

    @app.callback(
        Output("prompt-view", "data"),
        Output("prompt-status", "children"),
        Input("prompt-run", "n_clicks"),
        State("prompt-text", "value"),
        State("prompt-density", "value"),
        prevent_initial_call=True,
    )
    def run(_: int, text: str | None, densest: float | None) -> Any:
        try:
            with queue.turn():
                firings = fire((text or "")[:MAX_CHARACTERS])
        except SaetoolsError as error:
            return no_update, str(error)
        limit = 1.0 if densest is None else float(densest)
        rows = {feature: prompt_row(store, feature) for feature, _ in firings.features}
        kept = {feature for feature, row in rows.items() if row["density"] <= limit}
        view = {
            "tokens": list(firings.tokens),
            "features": [
                rows[feature] | {"at": [at for at, _ in pairs], "values": [value for _, value in pairs]}
                for feature, pairs in firings.features
                if feature in kept
            ],
            "top": [[[feature, value] for feature, value in entries] for entries in firings.top],
        }
        return view, f"{len(firings.tokens)} tokens, {len(kept)} features shown"

    app.clientside_callback(
        ClientsideFunction("saetools", "drawPrompt"), Output("prompt-drawn", "data"), Input("prompt-view", "data")
    )


def _register_steering(app: Dash, subject: Subject, queue: OneAtATime) -> None:
    steer = subject.steer
    assert steer is not None

    @app.callback(
        Output("steer-view", "data"),
        Output("steer-status", "children"),
        Input("steer-run", "n_clicks"),
        State("steer-prompt", "value"),
        State("steer-feature", "value"),
        State("steer-how", "value"),
        State("steer-strength", "value"),
        State("steer-value", "value"),
        State("steer-tokens", "value"),
        State("steer-temperature", "value"),
        prevent_initial_call=True,
    )
    def run(
        _: int,
        prompt: str | None,
        feature: int | None,
        how: str,
        strength: float,
        value: float | None,
        n_tokens: int | None,
        temperature: float | None,
    ) -> Any:
        if feature is None or not prompt:
            return no_update, "give a prompt and a feature"
        request = Steering(
            prompt[:MAX_CHARACTERS],
            int(feature),
            how,
            float(strength),
            float(value or 0.0),
            min(max(int(n_tokens or 1), 1), MAX_NEW_TOKENS),
            min(max(float(temperature or 0.0), 0.0), 5.0),
        )
        try:
            with queue.turn():
                baseline, steered = steer(request)
        except SaetoolsError as error:
            return no_update, str(error)
        return [baseline, steered], "equal to the baseline" if baseline == steered else "differs from the baseline"

    app.clientside_callback(
        ClientsideFunction("saetools", "drawSteering"), Output("steer-drawn", "data"), Input("steer-view", "data")
    )
    app.clientside_callback(
        ClientsideFunction("saetools", "text"), Output("steer-shown", "children"), Input("steer-strength", "value")
    )

    @app.callback(Output("steer-feature", "value"), Input("selected", "data"))
    def follow(feature: int | None) -> Any:
        return no_update if feature is None else feature


def prompt_row(store: FeatureStore, feature: int) -> dict[str, Any]:
    """Number, density and label of a feature that fired."""
    return {
        "feature": feature,
        "density": store.feature(feature).density,
        "label": store.annotation(feature)[0],
    }
