"""Many clients at once: the model is used by one, waited for by eight, and nothing else waits for it."""

import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import Any

from saetools.dashboard.live.subject import MAX_WAITING, Steering, Subject

N_CLIENTS, REQUESTS = 20, 5
OUTPUTS = [{"id": "steer-view", "property": "data"}, {"id": "steer-status", "property": "children"}]
STATE = {
    "steer-prompt.value": "p",
    "steer-feature.value": 3,
    "steer-how.data": "add",
    "steer-strength.value": 1,
    "steer-value.value": 1,
    "steer-tokens.value": 5,
    "steer-temperature.value": 0,
    "steer-seed.value": 0,
}


def ask(address: str, body: Any = None) -> Any:
    """The answer as JSON; with a body, of a callback."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=300) as answer:
        return json.load(answer)


def steering(address: str) -> str:
    """What the page would say after a click on Generate."""
    parts = [name.split(".") for name in STATE]
    body = {
        "output": "..steer-view.data...steer-status.children..",
        "outputs": OUTPUTS,
        "inputs": [{"id": "steer-run", "property": "n_clicks", "value": 1}],
        "state": [{"id": i, "property": p, "value": STATE[f"{i}.{p}"]} for i, p in parts],
        "changedPropIds": ["steer-run.n_clicks"],
    }
    return ask(f"{address}_dash-update-component", body)["response"]["steer-status"]["children"]


def test_twenty_clients_while_the_model_is_busy(subject: Subject, serve: Any) -> None:
    begun, may_end, n_running = threading.Event(), threading.Event(), [0, 0]

    def slow(request: Steering) -> tuple[str, str]:
        n_running[0] += 1
        n_running[1] = max(n_running)
        begun.set()
        assert may_end.wait(300)
        n_running[0] -= 1
        return "a", "b"

    def feature(client: int) -> list[int]:
        return [ask(f"{address}view/{(client + i) % 70}")["feature"] for i in range(REQUESTS)]

    with serve(Subject(subject.store, subject.fire, slow)) as address, ThreadPoolExecutor(2 * N_CLIENTS) as clients:
        try:
            first = clients.submit(steering, address)
            assert begun.wait(300)
            waiting = [clients.submit(steering, address) for _ in range(N_CLIENTS)]
            answers = list(clients.map(feature, range(N_CLIENTS)))
            assert answers == [[(client + i) % 70 for i in range(REQUESTS)] for client in range(N_CLIENTS)]
            assert ask(f"{address}find", {"text": "5", "sort": "feature", "features": None}) == {"feature": 5}
            refused = list(islice(as_completed(waiting, timeout=300), N_CLIENTS - MAX_WAITING))
            assert len(refused) == N_CLIENTS - MAX_WAITING
            assert not first.done(), "all were answered while the model was at work"
        finally:
            may_end.set()
        said = [job.result() for job in (first, *waiting)]
    assert n_running[1] == 1, "one job at a time"
    assert said.count("differs from the baseline") == 1 + MAX_WAITING
    assert sum("requests wait already" in each for each in said) == N_CLIENTS - MAX_WAITING
