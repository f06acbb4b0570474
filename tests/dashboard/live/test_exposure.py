"""What a server of the app shows to whom: nothing in the environment opens it, and it asks nobody for anything."""

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest

from saetools.dashboard.live.app import listen, make_app, make_guarded
from saetools.dashboard.live.guard import reachable
from saetools.dashboard.live.subject import Subject
from saetools.errors import ConfigError

ENVIRONMENTS = [
    {"HOST": "0.0.0.0", "PORT": "80"},
    {"DASH_MCP_ENABLED": "true", "DASH_MCP_PATH": "mcp", "DASH_DEBUG": "true", "DASH_UI": "true"},
    {"DASH_HOT_RELOAD": "true", "DASH_PROXY": "http://0.0.0.0:80::http://evil.test", "DASH_SERVE_DEV_BUNDLES": "true"},
    {"DASH_URL_BASE_PATHNAME": "/x/", "DASH_ROUTES_PATHNAME_PREFIX": "/y/", "DASH_REQUESTS_PATHNAME_PREFIX": "/z/"},
    {"DASH_ASSETS_EXTERNAL_PATH": "http://evil.test/", "DASH_INCLUDE_ASSETS_FILES": "true", "DASH_APP_NAME": "x"},
    {"dash_assets_external_path": "http://evil.test/", "host": "0.0.0.0", "dash_debug": "true"},
]
ROUTES = {
    "/",
    "/<path:path>",
    "/_dash-component-suites/<string:package_name>/<path:fingerprinted_path>",
    "/_dash-dependencies",
    "/_dash-layout",
    "/_dash-update-component",
    "/_favicon.ico",
    "/_reload-hash",
    "/assets/<path:filename>",
    "/find",
    "/plotly.js",
    "/static/<path:filename>",
    "/view/<int(signed=True):feature>",
}
PROGRAM = """
import json, sys, threading
from pathlib import Path
asked = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        asked.append(str(arguments[1:]))
sys.addaudithook(watch)
from saetools.dashboard.live.app import listen, make_guarded
from saetools.dashboard.live.subject import Subject
from saetools.features.store import FeatureStore
guard = make_guarded(Subject(FeatureStore.open(sys.argv[1]), metrics=Path(sys.argv[2])))
server = listen(guard, "127.0.0.1", 0)
asked.clear()
sys.stdout.write(f"{server.server_port}\\n"); sys.stdout.flush()
for _ in range(int(sys.argv[3])):
    server.handle_request()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(20)
sys.stdout.write(json.dumps(asked) + "\\n")
"""


def index_of(subject: Subject) -> str:
    page = make_app(subject).server.test_client().get("/").get_data(as_text=True)
    parts = page.split('"end_id":"')  # a fresh signature for each page
    return parts[0] + parts[-1].split('"', 1)[-1]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: next(iter(e)))
def test_the_environment_changes_nothing(subject: Subject, environment: dict[str, str]) -> None:
    expected = index_of(subject)
    with mock.patch.dict(os.environ, environment):
        guard = make_guarded(subject)
        app = make_app(subject)
        assert index_of(subject) == expected
        assert {name: os.environ[name] for name in environment} == environment
    assert guard.hosts == {"127.0.0.1", "localhost", "::1"}
    assert {str(rule) for rule in app.server.url_map.iter_rules()} == ROUTES
    assert not app.server.debug
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ConfigError, match="token"):
            make_guarded(subject, host=host)


def other_addresses() -> Iterator[str]:
    """Addresses of this machine other than 127.0.0.1."""
    yield "127.0.0.2"
    for entries in psutil.net_if_addrs().values():
        yield from (e.address for e in entries if e.family == socket.AF_INET and not e.address.startswith("127."))


def test_a_server_is_reached_at_one_address_and_asks_for_nothing(store_path: Path, subject: Subject) -> None:
    """In a process of its own, under the worst environment, with an ear at every call of the socket module."""
    assert subject.metrics is not None
    worst = {name: value for environment in ENVIRONMENTS for name, value in environment.items()}
    paths = ("/", "/view/1", "/assets/live.js", "/plotly.js", "/_dash-layout", "/_dash-dependencies")
    command = [sys.executable, "-c", PROGRAM, str(store_path), str(subject.metrics), str(len(paths) + 2)]
    child = subprocess.Popen(command, env={**os.environ, **worst}, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    port = int(child.stdout.readline())
    listening = [c.laddr for c in psutil.Process(child.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [tuple(address) for address in listening] == [("127.0.0.1", port)]
    for address in other_addresses():
        with pytest.raises(OSError), socket.create_connection((address, port), timeout=5):
            pass
    own = f"http://127.0.0.1:{port}"
    for path in paths:
        with urllib.request.urlopen(own + path, timeout=60) as answer:
            assert answer.status == 200
            policy = answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy and "eval" not in policy
    for headers, status in (({"Host": f"evil.test:{port}"}, 421), ({"Origin": "http://evil.test"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{own}/view/1", headers=headers), timeout=60)
        assert refused.value.code == status
    assert json.loads(child.stdout.readline()) == []
    assert child.wait(timeout=60) == 0


def test_a_server_for_other_machines_is_reached_by_each_of_its_addresses(subject: Subject) -> None:
    """With the token alone, and by its own addresses alone: a foreign name is refused though it leads here."""
    server = listen(make_guarded(subject, "0.0.0.0", "secret"), "0.0.0.0", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    own = f"saetools_token_{server.server_port}=secret"

    def ask(address: str, name: str, cookie: str = own) -> int:
        headers = {"Host": f"{name}:{server.server_port}", "Cookie": cookie}
        asked = urllib.request.Request(f"http://{address}:{server.server_port}/view/1", headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as refused:
            return refused.code

    for address in ("127.0.0.1", *other_addresses()):
        assert [ask(address, name) for name in (address, socket.gethostname().upper())] == [200, 200]
        assert [ask(address, name) for name in ("evil.test", "192.0.2.1", "0.0.0.0")] == [421] * 3
        assert ask(address, address, cookie="") == 401
    assert reachable("192.0.2.7") == "192.0.2.7"
    assert reachable("0.0.0.0") in {*other_addresses(), socket.gethostname()}
    server.shutdown()
    thread.join()
    server.server_close()
