"""What a hand does on a page, for the browser tests of both renderers."""

from collections.abc import Sequence
from typing import Any


def lasso(page: Any, corners: Sequence[tuple[float, float]]) -> None:
    """Draw around points of the map with the mouse; corners as shares of its width and height."""
    box = page.locator(".sae-map-canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def go_to(page: Any, feature: int) -> None:
    """Ask for a feature by its number, with the keys alone, and wait until it is drawn."""
    page.keyboard.press("g")
    page.keyboard.type(str(feature))
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#sae-feature[data-feature='{feature}'] .sae-token")
