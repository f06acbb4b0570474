"""Plotly's figure, shown without what reaches other machines: no button that uploads it, no MathJax from a CDN.

Pages of ours draw with their own scripts. This is what `panel.figure` is in notebooks and scripts, where plotly itself
would put a "Share chart" button on every figure and a link to a CDN beside it.
"""

import re
from typing import Any

import plotly.graph_objects as go

from saetools.dashboard.panel import CONFIG

SHOWN: Any = CONFIG | {"displayModeBar": "hover"}  # here its buttons are the only way to zoom and save
MATHJAX = re.compile(r'<script src="https://[^"]*mathjax[^"]*"[^>]*></script>', re.IGNORECASE)


class OfflineFigure(go.Figure):
    """A plotly figure whose ways to be shown have `SHOWN` for their default."""

    _ipython_display_ = None  # so that notebooks take the bundle below

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(*args, **{"config": SHOWN, **kwargs})
        return bundle | ({"text/html": MATHJAX.sub("", bundle["text/html"])} if "text/html" in bundle else {})

    def _repr_html_(self) -> str:
        return self.to_html(full_html=False)

    def show(self, *args: Any, **kwargs: Any) -> None:
        """As plotly's."""
        super().show(*args, **{"config": SHOWN, **kwargs})

    def to_html(self, *args: Any, **kwargs: Any) -> str:
        """As plotly's; the script of plotly is embedded."""
        return str(super().to_html(*args, **_quiet(args, kwargs)))

    def write_html(self, *args: Any, **kwargs: Any) -> None:
        """As plotly's; the script of plotly is embedded."""
        super().write_html(*args, **_quiet(args[1:], kwargs))


def _quiet(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords with SHOWN, where no config is given by place."""
    return kwargs if args else {"config": SHOWN, **kwargs}
