"""What an evaluation is given and what it gives back. Adding an evaluation is adding one file beside this one."""

from collections.abc import Sequence
from dataclasses import dataclass

from saetools.activations.base import RowSource
from saetools.dictionaries.base import Dictionary
from saetools.lm.base import Host
from saetools.records import EvalRecord, PointSpec
from saetools.text.packing import TokenPlan


@dataclass(frozen=True)
class Subject:
    """A dictionary (for raw rows) with the held-out data that it is judged on.

    `host` and `tokens` are None for a dictionary trained on a bare rows file; evaluations that need them are then
    listed as skipped.
    """

    dictionary: Dictionary
    spec: PointSpec
    heldout: RowSource
    host: Host | None = None
    tokens: TokenPlan | None = None
    seed: int = 0


__all__ = ["EvalRecord", "Sequence", "Subject"]
