"""A live app of the fixture store with callables that stand for a model."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saetools.features.records import PromptFirings
from saetools.features.store import FeatureStore

dash = pytest.importorskip("dash", reason="the extra dash is not installed")
pytest.importorskip("dash_ag_grid", reason="the extra dash is not installed")

from saetools.dashboard.comparison import Comparison  # noqa: E402
from saetools.dashboard.live.app import listen, make_guarded  # noqa: E402
from saetools.dashboard.live.subject import Steering, Subject  # noqa: E402


def fire(text: str) -> PromptFirings:
    """Token i fires feature i mod 5 with value i + 1."""
    tokens = tuple(word + " " for word in text.split(" "))
    places = range(len(tokens))
    features = tuple((f, tuple((i, i + 1.0) for i in places if i % 5 == f)) for f in range(min(5, len(tokens))))
    return PromptFirings(tokens, features)


def steer(request: Steering) -> tuple[str, str]:
    baseline = f"<b>{request.prompt}"
    return baseline, baseline if request.strength == 0 else f"{baseline} steered by {request.feature}"


@pytest.fixture(scope="session")
def subject(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    store = FeatureStore.open(store_path)
    metrics = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    lines = [{"step": i, "n_tokens": 1000 * i + 1000, "loss": 1 / (i + 1), "l0": 32.0} for i in range(20)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    n = store.info.n_features
    comparison = Comparison("other <i>", np.roll(np.arange(n), 1), np.linspace(-0.2, 1, n), store)
    return Subject(store, fire, steer, comparison, metrics)


@contextmanager
def serving(subject: Subject) -> Iterator[str]:
    """The address of a server of the subject, on a thread."""
    server = listen(make_guarded(subject), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="session")
def serve() -> Any:
    """`serving`, for tests with subjects of their own."""
    return serving


@pytest.fixture(scope="session")
def address(subject: Subject) -> Iterator[str]:
    with serving(subject) as address:
        yield address


@pytest.fixture
def call(subject: Subject) -> Any:
    """Call a callback of the app by the id of an output, as the browser would: values of inputs and states by id."""
    from saetools.dashboard.live.app import make_app

    app = make_app(subject)
    client = app.server.test_client()
    dependencies = client.get("/_dash-dependencies").get_json()

    def send(output: str, **values: Any) -> dict[str, Any]:
        entry = next(d for d in dependencies if output in d["output"] and not d["clientside_function"])

        def filled(items: list[dict[str, str]]) -> list[dict[str, Any]]:
            return [
                item | {"value": values.get(f"{item['id']}.{item['property']}".replace("-", "_").replace(".", "__"))}
                for item in items
            ]

        names = [name.split("@")[0] for name in entry["output"].strip(".").split("...")]
        outputs: Any = [{"id": n.rsplit(".", 1)[0], "property": n.rsplit(".", 1)[1]} for n in names]
        body = {
            "output": entry["output"],
            "outputs": outputs if len(outputs) > 1 else outputs[0],
            "inputs": filled(entry["inputs"]),
            "state": filled(entry["state"]),
            "changedPropIds": [f"{i['id']}.{i['property']}" for i in entry["inputs"]],
        }
        response = client.post("/_dash-update-component", json=body)
        if response.status_code == 204:
            return {}
        assert response.status_code == 200, response.data
        return response.get_json()["response"]

    return send
