"""Tabs that run the model: which features fire on a prompt, and the steering playground."""

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from saetools.dashboard.live.subject import Fire, OneAtATime, Steer, Steering, Subject
from saetools.errors import SaetoolsError
from saetools.features.records import PromptFirings
from saetools.features.store import FeatureStore, Filter

MAX_CHARACTERS = 20_000
MAX_NEW_TOKENS = 256
LARGEST = 2**31 - 1
"""Of a whole number: the + of Dash's field empties it where there is a least value without a greatest."""
EXAMPLE = "def load(path):\n    "
WAYS = {
    "add": "Add the direction",
    "capped": "Add, keep the norm",
    "clamp": "Clamp the feature",
    "ablate": "Ablate the feature",
    "project": "Remove the direction",
}

VALUED = ("add", "capped", "clamp")
"""Ways that need a value."""


def prompt_layout() -> html.Div:
    return html.Div(
        [
            html.Label("Text", htmlFor="prompt-text"),
            dcc.Textarea(id="prompt-text", className="sae-text", maxLength=MAX_CHARACTERS, value=EXAMPLE),
            html.Div(
                [
                    html.Button("Show features", id="prompt-run", className="sae-button sae-primary"),
                    html.Label("hide features denser than", htmlFor="prompt-density", className="sae-dim"),
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
    return html.Div(
        [
            html.Label("Prompt", htmlFor="steer-prompt"),
            dcc.Textarea(id="steer-prompt", className="sae-text", maxLength=MAX_CHARACTERS, value=EXAMPLE),
            html.Div(
                [
                    _field("Feature", _number("steer-feature", None, min=0, max=LARGEST, step=1)),
                    html.Div(
                        [html.Label("How", htmlFor="steer-how-select"), html.Div(id="steer-how-box")],
                        className="sae-field",
                    ),
                    _field("Value (of the code)", _number("steer-value", 10, step="any")),
                    _field("New tokens", _number("steer-tokens", 40, min=1, max=MAX_NEW_TOKENS, step=1)),
                    _field("Temperature", _number("steer-temperature", 0, min=0, max=5, step="any")),
                    _field("Seed", _number("steer-seed", 0, min=0, max=LARGEST, step=1)),
                ],
                className="sae-fields",
            ),
            html.Div(
                [
                    html.Label(["Strength ", html.B("1", id="steer-shown")], htmlFor="steer-strength"),
                    dcc.Input(id="steer-strength", type="range", min=-2, max=2, step=0.1, value=1),
                    html.Div(
                        [html.Span(mark) for mark in ("-2", "-1", "0: no change", "1", "2")], className="sae-ticks"
                    ),
                ],
                className="sae-slider",
            ),
            html.Div(
                [
                    html.Button("Generate", id="steer-run", className="sae-button sae-primary"),
                    html.Span(id="steer-status", className="sae-dim", role="status"),
                    dcc.Store(id="steer-ways", data=list(WAYS.items())),
                    dcc.Store(id="steer-ways-drawn"),
                    dcc.Store(id="steer-how", data="add"),
                    dcc.Store(id="steer-view"),
                    dcc.Store(id="steer-drawn"),
                ],
                className="sae-form-row",
            ),
            html.Div(
                [_result("Baseline", "steer-baseline"), _result("Steered", "steer-steered")], className="sae-overview"
            ),
        ],
        className="sae-card sae-form",
    )


def _number(name: str, value: float | None, **limits: Any) -> dcc.Input:
    return dcc.Input(id=name, type="number", value=value, **limits)


def _field(label: str, control: Any) -> html.Div:
    return html.Div([html.Label(label, htmlFor=control.id), control], className="sae-field")


def _result(title: str, name: str) -> html.Div:
    return html.Div([html.H3(title), html.Pre(id=name, className="sae-text-result", tabIndex=0)])


def register(app: Dash, subject: Subject, store: FeatureStore) -> None:
    """Callbacks of the tabs whose callables were given. One job uses the model at a time."""
    queue = OneAtATime()
    if subject.fire is not None:
        _register_prompt(app, subject.fire, store, queue)
    if subject.steer is not None:
        _register_steering(app, subject.steer, store, queue)


def _register_prompt(app: Dash, fire: Fire, store: FeatureStore, queue: OneAtATime) -> None:
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
                firings = fire((text or "")[:MAX_CHARACTERS])  # BOS is no token of it
        except SaetoolsError as error:
            return no_update, str(error)
        view = prompt_view(store, firings, 1.0 if densest is None else float(densest))
        return view, f"{len(view['tokens'])} tokens, {len(view['features']):,} features"

    app.clientside_callback(
        ClientsideFunction("saetools", "drawPrompt"), Output("prompt-drawn", "data"), Input("prompt-view", "data")
    )


def _register_steering(app: Dash, steer: Steer, store: FeatureStore, queue: OneAtATime) -> None:
    @app.callback(
        Output("steer-view", "data"),
        Output("steer-status", "children"),
        Input("steer-run", "n_clicks"),
        State("steer-prompt", "value"),
        State("steer-feature", "value"),
        State("steer-how", "data"),
        State("steer-strength", "value"),
        State("steer-value", "value"),
        State("steer-tokens", "value"),
        State("steer-temperature", "value"),
        State("steer-seed", "value"),
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
        seed: int | None,
    ) -> Any:
        if feature is None or not prompt:
            return no_update, "give a prompt and a feature"
        if value is None and how in VALUED:
            return no_update, "give a value"
        request = Steering(
            prompt[:MAX_CHARACTERS],
            int(feature),
            how,
            float(strength),
            float(value or 0.0),
            min(max(int(n_tokens or 1), 1), MAX_NEW_TOKENS),
            min(max(float(temperature or 0.0), 0.0), 5.0),
            int(seed or 0),
        )
        try:
            with queue.turn():
                baseline, steered = steer(request)
        except SaetoolsError as error:
            return no_update, str(error)
        return [baseline, steered], "equal to the baseline" if baseline == steered else "differs from the baseline"

    app.clientside_callback(
        ClientsideFunction("saetools", "drawWays"), Output("steer-ways-drawn", "data"), Input("steer-ways", "data")
    )
    app.clientside_callback(
        ClientsideFunction("saetools", "drawSteering"), Output("steer-drawn", "data"), Input("steer-view", "data")
    )
    app.clientside_callback(
        ClientsideFunction("saetools", "text"), Output("steer-shown", "children"), Input("steer-strength", "value")
    )


def prompt_view(store: FeatureStore, firings: PromptFirings, densest: float) -> dict[str, Any]:
    """The prompt's tokens, and every feature that fires on them and is not denser than `densest`, strongest first."""
    fired = dict(firings.features)
    known = {row.feature: row for row in store.table("feature", Filter(features=list(fired)), limit=len(fired)).rows}
    features = [
        {
            "feature": feature,
            "name": known[feature].label or "",
            "token": known[feature].peak_token or "",
            "density": known[feature].density,
            "at": [at for at, _ in pairs],
            "values": [value for _, value in pairs],
        }
        for feature, pairs in fired.items()
        if feature in known and known[feature].density <= densest
    ]
    return {"tokens": list(firings.tokens), "features": features}
