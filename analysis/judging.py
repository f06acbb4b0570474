"""How a claim about dictionaries is judged: over pairs of them, figure by figure, and not where the data cannot say.

A claim is judged figure by figure over pairs of dictionaries of the same L0 target and seed. A pair tells of itself
where the claim is true, or untrue, at every corner of the two 95 % intervals: those over documents, or, for a share of
features, which has none, the exact binomial one. A figure holds where at least one pair tells so and no pair points the
other way, or where ENOUGH pairs all point one way (whose chance is 1 in 16 where there is no difference); it fails
likewise, is mixed where pairs tell of both, and undecided else. Equal values point nowhere. Dictionaries whose mean L0
at inference differ by more than SAME_L0 are no pair. A claim holds where all of its figures do; fails where
one fails and none holds; is mixed where some hold and some fail; holds in part where the others are undecided; and is
undecided where all are. The pairs stand in the paragraph.

The intervals leave out what another seed of training would give, and take both dictionaries for judged on documents of
their own, though these are the same: the first makes them too narrow, the second too wide.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from saetools.records import EvalRecord

ENOUGH = 5
"""Pairs that decide by pointing one way, though each by itself could be chance."""
SAME_L0 = 0.15
"""Relative difference of L0 up to which two dictionaries are compared."""
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

    @property
    def spec(self) -> dict[str, Any]:
        """What the rows of its run are: host, point, ..."""
        spec: dict[str, Any] = json.loads((self.run / "run.json").read_text())["spec"]
        return spec

    def figure(self, name: str) -> float | None:
        """A figure; where it was judged twice, as the report did."""
        return next((r.value for r in self.records if r.name == name), None)

    def measure(self, name: str) -> Any:
        """What a measure of measures.py found; None where it was not taken."""
        path = self.directory / f"{name}.json"
        return json.loads(path.read_text())["found"] if path.exists() else None


@dataclass(frozen=True)
class Claim:
    """What is claimed, by whom, and what is found."""

    claim: str
    source: str
    verdict: str  # holds | holds in part | fails | mixed | undecided | not run | not tested, with details behind it
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
    both = [Pair(target, seed, found[one, target, seed], found[other, target, seed]) for target, seed in sorted(keys)]
    return [pair for pair in both if same_l0(*(pair.values("l0_mean") or (1.0, 1.0)))]


def same_l0(one: float, other: float) -> bool:
    return abs(one / other - 1) <= SAME_L0


def told(found: Sequence[Pair], figure: str) -> str:
    """`L0 32: 0.213, 0.215 against 0.238, 0.231; ...` of a figure, seed by seed."""
    return grouped(found, lambda pair: pair.values(figure))


def grouped(found: Sequence[Pair], values_of: Callable[[Pair], tuple[float, float] | None]) -> str:
    """Values of each pair's two sides, by L0 target."""
    by_target: dict[int, list[tuple[float, float]]] = {}
    for pair in found:
        if (values := values_of(pair)) is not None:
            by_target.setdefault(pair.target, []).append(values)
    texts = [
        f"L0 {target}: " + " against ".join(", ".join(f"{v:.3g}" for v in side) for side in zip(*values, strict=True))
        for target, values in by_target.items()
    ]
    return "; ".join(texts) or "not run"


def verdict(found: Sequence[Pair], tests: dict[str, Callable[[float, float], bool]]) -> str:
    """The claim's verdict with the one of each figure behind it where they differ; `not run` without any pair."""
    each = {}
    for figure, test in tests.items():
        judged = [pair for pair in found if pair.values(figure) is not None]
        if judged:
            each[figure] = of_figure([vote for pair in judged if (vote := _vote(pair, figure, test)) is not None])
    return overall(each)


@dataclass(frozen=True)
class Vote:
    """What a pair says of a figure."""

    agrees: bool
    sure: bool  # the same at every corner of the two intervals


def _vote(pair: Pair, figure: str, test: Callable[[float, float], bool]) -> Vote | None:
    values, records = pair.values(figure), pair.records(figure)
    if values is None or records is None or (values[0] == values[1] and not test(*values)):
        return None
    ends = [interval(record, e) for record, e in zip(records, (pair.one, pair.other), strict=True)]
    agrees = test(*values)
    return Vote(agrees, all(test(*corner) == agrees for corner in product(*ends)))


def interval(record: EvalRecord, of: Evaluated) -> tuple[float, float]:
    """A record's 95 % interval; of a share of features without one, the exact binomial one; else without bounds."""
    if record.spread is not None:
        return record.spread
    if record.unit == "fraction of features" and record.value is not None:
        n = int(of.facts["n_atoms"])
        low, high = binomtest(round(record.value * n), n).proportion_ci()
        return float(low), float(high)
    return -math.inf, math.inf


def of_figure(votes: Sequence[Vote]) -> str:
    """`holds`, `fails`, `mixed` or `undecided`."""
    sure = {vote.agrees for vote in votes if vote.sure}
    if len(sure) == 2:
        return "mixed"
    one_way = len({vote.agrees for vote in votes}) == 1
    if one_way and (sure or len(votes) >= ENOUGH):
        return "holds" if votes[0].agrees else "fails"
    return "undecided"


def overall(each: dict[str, str]) -> str:
    """The verdict of a claim from those of its figures."""
    if not each:
        return "not run"
    kinds = set(each.values())
    if len(kinds) == 1 and "mixed" not in kinds:
        return kinds.pop()
    if "holds" not in kinds:
        result = "fails" if "fails" in kinds else "mixed"
    else:
        result = "mixed" if kinds & {"fails", "mixed"} else "holds in part"
    return f"{result} ({', '.join(f'{figure} {found}' for figure, found in each.items())})"


def result_of(results: set[str]) -> str:
    """One verdict from those of several dictionaries: of what holds and is undecided, it holds in part."""
    if len(results) <= 1:
        return next(iter(results), "not run")
    decided = results - {"undecided"}
    return {("holds",): "holds in part", ("fails",): "fails"}.get(tuple(decided), "mixed")


def less(one: float, other: float) -> bool:
    return one < other


def more(one: float, other: float) -> bool:
    return one > other
