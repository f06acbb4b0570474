"""axe-core finds nothing serious or critical on the exported page, in light and in dark."""

from pathlib import Path
from typing import Any

import pytest

from saetools.dashboard.export import Contents, export_page
from saetools.features.store import FeatureStore

axe_core = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python is not installed")
pytestmark = pytest.mark.browser


def serious(page: Any) -> list[str]:
    """Rule and place of each finding that is serious or critical."""
    found = axe_core.Axe().run(page)["violations"]
    return [
        f"{violation['id']}: {violation['nodes'][0]['html'][:200]}"
        for violation in found
        if violation["impact"] in {"serious", "critical"}
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_exported_page(browser: Any, store_path: Path, tmp_path: Path, scheme: str) -> None:
    export_page(Contents(FeatureStore.open(store_path), n_features=5), tmp_path / "page.html")
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(90_000)  # a loaded machine is slow, not wrong
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector(".sae-token")
    assert serious(page) == []
    page.click("#tab-Map")
    page.wait_for_selector("#sae-map[data-points]")
    assert serious(page) == []
    page.keyboard.press("?")
    page.wait_for_selector("#sae-help[open]")
    assert serious(page) == []
    context.close()
