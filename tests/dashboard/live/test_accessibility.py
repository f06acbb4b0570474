"""axe-core finds nothing serious or critical on any tab of the live app."""

from typing import Any

import pytest
from axe import serious

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DRAWN = {"Map": "#sae-map[data-points]", "Compare": "#sae-cosines svg", "Training": "#sae-curves .main-svg"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab(browser: Any, address: str, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(90_000)  # a loaded machine is slow, not wrong
    page.goto(address)
    page.click(".ag-row[row-id][row-index='1']")
    page.wait_for_selector("#sae-feature .sae-token")
    for tab in ("Feature", "Map", "Prompt", "Steering", "Compare", "Training"):
        page.click(f"#tabs >> text={tab}")
        if tab == "Prompt":
            page.click("#prompt-run")
            page.wait_for_selector(".sae-strip .sae-token")
        page.wait_for_selector(DRAWN.get(tab, f"#panel-{tab}:not([hidden])"))
        assert serious(page) == [], tab
    context.close()
