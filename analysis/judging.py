"""How a claim about dictionaries is judged: over pairs of them, figure by figure.

A claim is judged figure by figure over pairs of dictionaries of the same L0 target and seed. A figure holds where every
pair agrees with the claim, fails where none does, is mixed otherwise, and a tie where no pair differs; a claim holds
where all of its figures do, fails where none does, and is mixed otherwise. The pairs stand in the paragraph.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from saetools.records import EvalRecord

MISSING = EvalRecord(name="none", value=None, unit="none", n=0)


@dataclass(frozen=True)
class Evaluated:
    """A dictionary with its facts (result.json) and records."""

    facts: dict[str, Any]
    records: list[EvalRecord]
    directory: Path  # of the records
    run: Path

    @property
    def name(self) -> str:
        return f"{self.facts['label']}, L0 {self.facts['target_l0']}, seed {self.facts['seed']}"

    def figure(self, name: str) -> float | None:
        """A figure; where it was judged twice, as the report did."""
        return next((r.value for r in self.records if r.name == name), None)

    def measure(self, name: str) -> Any:
        """What a measure of measures.py found; None where it was not taken."""
        path = self.directory / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None


@dataclass(frozen=True)
class Claim:
    """What is claimed, by whom, and what is found."""

    claim: str
    source: str
    verdict: str  # holds | fails | mixed | not run | not tested, with details in parentheses
    finding: str


@dataclass(frozen=True)
class Pair:
    """Two dictionaries of one L0 target and seed."""

    target: int
    seed: int
    one: Evaluated
    other: Evaluated

    def records(self, figure: str) -> tuple[EvalRecord, EvalRecord] | None:
        """The figure of both, judged with equal settings; None where there is none."""
        both = product(*([r for r in e.records if r.name == figure] for e in (self.one, self.other)))
        return next(((a, b) for a, b in both if a.config == b.config), None)

    def values(self, figure: str) -> tuple[float, float] | None:
        one, other = (r.value for r in self.records(figure) or (MISSING, MISSING))
        return None if one is None or other is None else (one, other)


def pairs(every: Sequence[Evaluated], one: str, other: str) -> list[Pair]:
    """All pairs of two labels."""
    found = {(e.facts["label"], e.facts["target_l0"], e.facts["seed"]): e for e in every}
    keys = [(target, seed) for label, target, seed in found if label == one and (other, target, seed) in found]
    return [Pair(target, seed, found[one, target, seed], found[other, target, seed]) for target, seed in sorted(keys)]


def told(found: Sequence[Pair], figure: str) -> str:
    """`0.213 against 0.238 (L0 32, seed 0); ...` of a figure."""
    texts = []
    for pair in found:
        values = pair.values(figure)
        if values is not None:
            texts.append(f"{values[0]:.4g} against {values[1]:.4g} (L0 {pair.target}, seed {pair.seed})")
    return "; ".join(texts) or "not run"


def verdict(found: Sequence[Pair], tests: dict[str, Callable[[float, float], bool]]) -> str:
    """`holds`, `fails` or `mixed`, with the verdict of each figure behind it where they differ."""
    each = {}
    for figure, test in tests.items():
        values = [v for pair in found if (v := pair.values(figure)) is not None]
        if values:
            results = {test(*v) for v in values if v[0] != v[1]}
            each[figure] = {frozenset(): "tie", frozenset({True}): "holds", frozenset({False}): "fails"}.get(
                frozenset(results), "mixed"
            )
    return overall(each)


def overall(each: dict[str, str]) -> str:
    """The verdict of a claim from those of its figures."""
    if not each:
        return "not run"
    kinds = set(each.values())
    if len(kinds) == 1 and kinds <= {"holds", "fails"}:
        return kinds.pop()
    told = ", ".join(f"{figure} {result}" for figure, result in each.items())
    return f"{'mixed' if kinds & {'holds', 'mixed'} else 'fails'} ({told})"


def result_of(results: set[str]) -> str:
    """One verdict from those of several dictionaries."""
    return "not run" if not results else next(iter(results)) if len(results) == 1 else "mixed"


def less(one: float, other: float) -> bool:
    return one < other


def more(one: float, other: float) -> bool:
    return one > other
