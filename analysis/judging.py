"""How a claim about dictionaries is judged: over pairs of them, figure by figure, and not where the data cannot say.

A pair is a dictionary and what another label has, on the same rows (same seed), at its L0. Where the L0 differ (some
kinds choose it by a threshold learnt in training), the other label's figure is moved to the dictionary's L0 along the
line through its two runs of that seed nearest in log L0, the nearest within SAME_L0: log FVU and log (1 - recovered)
over log L0, any other figure itself over log L0, shares held at 0 or above. Its interval moves with it.
Without a second run, one within EQUAL_L0 is taken as it is; else there is no pair.

A pair points one way, or, with equal values, nowhere. It is clear where it does so at every corner of the two 95 %
intervals: those over documents, or, for a share of features, which has none, the exact binomial one. A figure holds
where no pair points the other way and at some L0 target all of SEEDS seeds or more point so, and fails likewise. It is
mixed where seeds all point one way at one L0 and the other way at another, or clear pairs tell of both; undecided else.

How strong that is: the unit is the seed. Pairs of one seed share their rows, and all pairs the held-out text, so they
are not independent: where there is no difference, three seeds all point one way in 1 of 4 cases, however many L0 there
are. The count of clear pairs stands beside each verdict. Their intervals take both dictionaries for judged on documents
of their own, though these are the same (too wide), and leave out what another seed gives (too narrow).

A claim holds where all of its figures do; fails where one fails and none holds; is mixed where some hold and some fail;
holds in part where the others are undecided; and is undecided where all are.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from saetools.records import EvalRecord

SEEDS = 3
"""Seeds that decide by pointing one way at one L0."""
SAME_L0 = 0.15
"""Relative difference of L0 over which a figure is moved."""
EQUAL_L0 = 0.01
"""Relative difference of L0 up to which a figure is taken as it is where it cannot be moved."""
FEW = 100
"""A figure that is a mean of fewer items says so."""
TINY = 1e-9
Scale = tuple[Callable[[float], float], Callable[[float], float]]
LOG: Scale = (lambda value: math.log(max(value, TINY)), math.exp)
LOST: Scale = (lambda value: math.log(max(1 - value, TINY)), lambda lost: 1 - math.exp(lost))
ITSELF: Scale = (float, float)
SCALES = {"fvu": LOG, "ce_recovered_zero": LOST, "kl_recovered_zero": LOST}
"""Figure -> the scale on which it is about linear in log L0, and its inverse; others on their own."""


@dataclass(frozen=True)
class Evaluated:
    """A dictionary with its facts (result.json) and records."""

    facts: dict[str, Any]
    records: list[EvalRecord]
    directory: Path  # of the records
    run: Path

    @property
    def label(self) -> str:
        return str(self.facts["label"])

    @property
    def name(self) -> str:
        return f"{self.label}, target L0 {self.facts['target_l0']}, seed {self.facts['seed']}"

    @property
    def spec(self) -> dict[str, Any]:
        """What the rows of its run are: host, point, ..."""
        spec: dict[str, Any] = json.loads((self.run / "run.json").read_text())["spec"]
        return spec

    def record(self, name: str, config: Mapping[str, Any] | None = None) -> EvalRecord | None:
        """A figure's record with a value, judged with these settings; with any, that of the report's own rounds."""
        every = (r for r in self.records if r.name == name and config in (None, r.config))
        found = next(every, None)
        return found if found is not None and found.value is not None else None

    def figure(self, name: str) -> float | None:
        found = self.record(name)
        return None if found is None else found.value

    def measure(self, name: str) -> Any:
        """What a measure of measures.py found; None where it was not taken."""
        path = self.directory / f"{name}.json"
        return json.loads(path.read_text())["found"] if path.exists() else None


@dataclass(frozen=True)
class Judged:
    """A figure behind a claim; one without a verdict is only told."""

    figure: str
    by_target: Mapping[int, str]  # L0 target -> values, over seeds
    verdict: str = ""
    n_for: int = 0
    n_against: int = 0
    n_clear: int | None = None  # of pairs; None for dictionaries
    n: int = 0  # pairs or dictionaries, with those that point nowhere

    @property
    def strength(self) -> str:
        """`fvu fails by direction: 0 for, 9 against of 9, 1 clear`; clearly where more than half of the pairs are."""
        how = "" if self.verdict not in ("holds", "fails") or self.n_clear is None else " by direction"
        how = " clearly" if how and 2 * (self.n_clear or 0) > self.n_for + self.n_against else how
        clear = "" if self.n_clear is None else f", {self.n_clear} clear"
        return f"{self.figure} {self.verdict}{how}: {self.n_for} for, {self.n_against} against of {self.n}{clear}"


@dataclass(frozen=True)
class Claim:
    """What is claimed, by whom, and what is found."""

    claim: str
    source: str
    verdict: str  # holds | holds in part | fails | mixed | undecided | not run | not tested
    finding: str
    figures: tuple[Judged, ...] = ()

    @property
    def strength(self) -> str:
        """Pairs, or dictionaries, behind the verdict of each figure."""
        return "; ".join(figure.strength for figure in self.figures if figure.verdict)


@dataclass(frozen=True)
class Pair:
    """A dictionary, and the runs of another label of the same seed, nearest in L0 first."""

    target: int
    seed: int
    one: Evaluated
    rivals: tuple[Evaluated, ...]

    def records(self, figure: str) -> tuple[EvalRecord, EvalRecord] | None:
        """The figure of both at the first one's L0, judged with equal settings; None where there is none."""
        for own in (r for r in self.one.records if r.name == figure and r.value is not None):
            near = [(e.figure("l0_mean"), e.record(figure, own.config)) for e in self.rivals]
            moved = at_l0(self.one.figure("l0_mean"), [(l0, r) for l0, r in near if r is not None])
            if near[0][1] is not None and moved is not None:
                return own, moved
        return None

    def values(self, figure: str) -> tuple[float, float] | None:
        found = self.records(figure)
        return None if found is None else (found[0].value or 0.0, found[1].value or 0.0)

    def measured_l0(self) -> tuple[float, float] | None:
        """L0 of the dictionary and of the nearest run of the other label, as they are."""
        one, other = (e.figure("l0_mean") for e in (self.one, self.rivals[0]))
        return None if one is None or other is None else (one, other)


def at_l0(l0: float | None, near: Sequence[tuple[float | None, EvalRecord]]) -> EvalRecord | None:
    """A figure of (L0, record), nearest first, moved to an L0; where that is unknown, the nearest."""
    if not near:
        return None
    at, first = near[0]
    if l0 is None or at is None or at == l0:
        return first
    second = next(((other, r) for other, r in near[1:] if other not in (None, at)), None)
    if second is None:
        return first if abs(at / l0 - 1) <= EQUAL_L0 else None
    to, back = SCALES.get(first.name, ITSELF)
    slope = (to(second[1].value or 0.0) - to(first.value or 0.0)) / math.log((second[0] or at) / at)
    least = 0.0 if first.unit.startswith("fraction") else -math.inf

    def move(value: float) -> float:
        return max(least, back(to(value) + slope * math.log(l0 / at)))

    spread = first.spread and (move(first.spread[0]), move(first.spread[1]))
    return first.model_copy(update={"value": move(first.value or 0.0), "spread": spread})


def pairs(every: Sequence[Evaluated], one: str, other: str) -> list[Pair]:
    """Each dictionary of a label with the runs of another, of which one has about its L0, or, unknown, its target."""
    found = []
    for e in (e for e in every if e.label == one):
        target, seed, l0 = e.facts["target_l0"], e.facts["seed"], e.figure("l0_mean") or e.facts["target_l0"]
        rivals = [(r.figure("l0_mean") or r.facts["target_l0"], r) for r in every if r.label == other]
        rivals = [(at, r) for at, r in rivals if r.facts["seed"] == seed and at > 0]
        rivals.sort(key=lambda rival: abs(math.log(rival[0] / l0)))
        if rivals and same_l0(rivals[0][0], l0):
            found.append(Pair(target, seed, e, tuple(r for _, r in rivals)))
    return sorted(found, key=lambda pair: (pair.target, pair.seed))


def same_l0(one: float, other: float) -> bool:
    return abs(one / other - 1) <= SAME_L0


def summary(values: Iterable[float]) -> str:
    """`0.203 (0.196 to 0.211)`: mean and range over seeds; `-` where there is none."""
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return "-"
    low, mean, high = (number(v) for v in (min(known), sum(known) / len(known), max(known)))
    return mean if low == high else f"{mean} ({low} to {high})"


def number(value: float) -> str:
    """Three digits; four of a share near 1, and whole numbers as they are."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{4 if 0.9 <= abs(value) < 1 else 3}g}"


def told(found: Sequence[Pair], figure: str) -> Judged:
    """A figure of each side over seeds, by L0 target, without a verdict."""
    return grouped(figure, found, lambda pair: pair.values(figure))


def grouped(name: str, found: Sequence[Pair], values_of: Callable[[Pair], tuple[float, float] | None]) -> Judged:
    """Values of each pair's two sides over seeds, by L0 target: `0.203 (0.196 to 0.211) against 0.195`."""
    by_target: dict[int, list[tuple[float, float]]] = {}
    for pair in found:
        if (values := values_of(pair)) is not None:
            by_target.setdefault(pair.target, []).append(values)
    return Judged(name, {k: " against ".join(summary(side) for side in zip(*v)) for k, v in by_target.items()})


@dataclass(frozen=True)
class Vote:
    """What a pair says of a figure."""

    agrees: bool
    clear: bool  # the same at every corner of the two intervals
    target: int = 0
    seed: int = 0


def judge(found: Sequence[Pair], figure: str, test: Callable[[float, float], bool]) -> Judged:
    """A figure with its verdict; `not run` where no pair has it."""
    judged = [pair for pair in found if pair.values(figure) is not None]
    votes = [vote for pair in judged if (vote := _vote(pair, figure, test)) is not None]
    return Judged(
        _with_few(figure, judged),
        told(judged, figure).by_target,
        of_figure(votes) if judged else "not run",
        sum(vote.agrees for vote in votes),
        sum(not vote.agrees for vote in votes),
        sum(vote.clear for vote in votes),
        len(judged),
    )


def _with_few(figure: str, judged: Sequence[Pair]) -> str:
    """The figure's name, and of how many items it is a mean where they are few."""
    few = {(r.n, r.n_unit) for pair in judged for r in pair.records(figure) or () if r.n < FEW}
    return figure + "".join(f" ({n} {unit})" for n, unit in sorted(few))


def _vote(pair: Pair, figure: str, test: Callable[[float, float], bool]) -> Vote | None:
    values, records = pair.values(figure), pair.records(figure)
    if values is None or records is None or (values[0] == values[1] and not test(*values)):
        return None
    ends = [interval(record, e) for record, e in zip(records, (pair.one, pair.rivals[0]), strict=True)]
    agrees = test(*values)
    return Vote(agrees, all(test(*corner) == agrees for corner in product(*ends)), pair.target, pair.seed)


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
    decided = set()
    for target in {vote.target for vote in votes}:
        own = [vote for vote in votes if vote.target == target]
        ways = {vote.agrees for vote in own}
        if len(ways) == 1 and len({vote.seed for vote in own}) >= SEEDS:
            decided |= ways
    if len(decided | {vote.agrees for vote in votes if vote.clear}) == 2:
        return "mixed"
    if decided and len({vote.agrees for vote in votes}) == 1:
        return "holds" if votes[0].agrees else "fails"
    return "undecided"


def overall(results: Iterable[str]) -> str:
    """The verdict of a claim from those of its figures; of those that were not run none is made."""
    kinds = set(results) - {"not run", ""}
    if len(kinds) <= 1:
        return next(iter(kinds), "not run")
    if "holds" not in kinds:
        return "fails" if "fails" in kinds else "mixed"
    return "mixed" if kinds & {"fails", "mixed"} else "holds in part"


def of_dictionaries(figure: str, ways: Sequence[str], by_target: Mapping[int, str]) -> Judged:
    """A figure that each dictionary decides by itself (holds, fails, undecided); mixed where decided ones differ."""
    decided = set(ways) - {"undecided"}
    verdict = "mixed" if len(decided) > 1 else next(iter(decided), "undecided" if ways else "not run")
    if verdict == "holds" and "undecided" in ways:
        verdict = "holds in part"
    return Judged(figure, by_target, verdict, ways.count("holds"), ways.count("fails"), n=len(ways))


def less(one: float, other: float) -> bool:
    return one < other


def more(one: float, other: float) -> bool:
    return one > other
