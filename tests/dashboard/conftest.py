"""A store made without torch, with hostile text in it, and a browser where there is one."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fixture_store import write_fixture

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dashboard") / "features"
    write_fixture(path)
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield chromium
        chromium.close()


class Watched:
    """A page with what it logged and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        page.set_default_timeout(90_000)  # a loaded machine is slow, not wrong
        self.troubles: list[str] = []
        self.external: list[str] = []
        page.add_init_script(
            "window.__pwned = 0; window.alert = window.confirm = window.prompt = () => { window.__pwned++; };"
        )
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", lambda message: self._log(message))
        page.on("request", lambda request: self._request(request.url))

    def _log(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.troubles.append(message.text)

    def _request(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1")):
            self.external.append(url)

    def check(self) -> None:
        assert not self.troubles, self.troubles
        assert not self.external, self.external
        assert self.page.evaluate("window.__pwned") == 0


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Watched(context.new_page())
    context.close()
