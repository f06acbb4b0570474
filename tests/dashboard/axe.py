"""What axe-core holds against a page."""

from typing import Any

import pytest


def serious(page: Any) -> list[str]:
    """Rule and place of each finding that is serious or critical; skips the test where axe-core is not installed."""
    reason = "axe-core-python is not installed"
    axe_core = pytest.importorskip("axe_core_python.sync_playwright", reason=reason)
    # what is well is not asked for: it takes longest
    found = axe_core.Axe().run(page, options={"resultTypes": ["violations"]})["violations"]
    return [
        f"{violation['id']}: {violation['nodes'][0]['html'][:200]}"
        for violation in found
        if violation["impact"] in {"serious", "critical"}
    ]
