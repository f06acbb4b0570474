"""How the report judges claims: no verdict that its data cannot carry."""

import sys
from pathlib import Path
from typing import Any

import pytest

from saetools.records import EvalRecord

ANALYSIS = str(Path(__file__).parents[1] / "analysis")


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ANALYSIS)
    import judging

    yield judging
    sys.modules.pop("judging")


def pair(judging: Any, one: EvalRecord, other: EvalRecord, seed: int = 0) -> Any:
    facts = {"n_atoms": 4096, "label": "x", "target_l0": 32, "seed": seed}
    return judging.Pair(32, seed, *(judging.Evaluated(facts, [r], Path(), Path()) for r in (one, other)))


def fvu(value: float, half: float) -> EvalRecord:
    return EvalRecord(name="fvu", value=value, unit="fraction", n=9, spread=(value - half, value + half))


def dead(count: int) -> EvalRecord:
    return EvalRecord(name="dead_fraction", value=count / 4096, unit="fraction of features", n=9)


def test_intervals_apart_decide_and_overlapping_ones_do_not(judging: Any) -> None:
    clear, unclear = (pair(judging, fvu(0.1, 0.01), fvu(0.2, half)) for half in (0.02, 0.1))
    assert judging.verdict([clear], {"fvu": judging.less}) == "holds"
    assert judging.verdict([clear], {"fvu": judging.more}) == "fails"
    assert judging.verdict([unclear], {"fvu": judging.less}) == "undecided"
    assert judging.verdict([clear, unclear], {"fvu": judging.less}) == "holds"
    assert judging.verdict([unclear] * judging.ENOUGH, {"fvu": judging.less}) == "holds"
    other_way = pair(judging, fvu(0.2, 0.1), fvu(0.1, 0.1))
    assert judging.verdict([clear, other_way], {"fvu": judging.less}) == "undecided"
    assert judging.verdict([unclear] * 9 + [other_way], {"fvu": judging.less}) == "undecided"
    reverse = pair(judging, fvu(0.2, 0.01), fvu(0.1, 0.01))
    assert judging.verdict([clear, reverse], {"fvu": judging.less}) == "mixed (fvu mixed)"
    assert judging.verdict([], {"fvu": judging.less}) == "not run"


def test_a_few_dead_features_more_or_less_are_chance(judging: Any) -> None:
    assert judging.verdict([pair(judging, dead(2), dead(4))], {"dead_fraction": judging.less}) == "undecided"
    assert judging.verdict([pair(judging, dead(0), dead(0))], {"dead_fraction": judging.less}) == "undecided"
    assert judging.verdict([pair(judging, dead(2), dead(40))], {"dead_fraction": judging.less}) == "holds"


def test_a_figure_without_an_interval_decides_by_many_pairs_alone(judging: Any) -> None:
    one, other = (EvalRecord(name="l0_sd", value=v, unit="features per token", n=9) for v in (1.0, 2.0))
    found = [pair(judging, one, other, seed) for seed in range(judging.ENOUGH)]
    assert judging.verdict(found[:-1], {"l0_sd": judging.less}) == "undecided"
    assert judging.verdict(found, {"l0_sd": judging.less}) == "holds"


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ("holds holds", "holds"),
        ("holds undecided", "holds in part"),
        ("holds fails", "mixed"),
        ("undecided fails", "fails"),
        ("undecided undecided", "undecided"),
        ("mixed undecided", "mixed"),
    ],
)
def test_claims_of_several_figures(judging: Any, figures: str, expected: str) -> None:
    each = {f"figure {i}": result for i, result in enumerate(figures.split())}
    assert judging.overall(each).split(" (")[0] == expected
