"""How the report judges claims: no verdict that its data cannot carry."""

import json
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


def test_equal_values_point_nowhere(judging: Any) -> None:
    """Five pairs without a dead feature on either side say neither that there are fewer nor that there are not."""
    ties = [pair(judging, dead(0), dead(0), seed) for seed in range(judging.ENOUGH)]
    for test in (judging.less, judging.more):
        assert judging.verdict(ties, {"dead_fraction": test}) == "undecided"
    clear = pair(judging, dead(2), dead(40))
    assert judging.verdict([*ties, clear], {"dead_fraction": judging.less}) == "holds"
    assert judging.verdict(ties, {"dead_fraction": lambda one, other: one <= other}) == "holds", (
        "no tie: equal is meant"
    )


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ("", "not run"),
        ("undecided", "undecided"),
        ("holds", "holds"),
        ("holds undecided", "holds in part"),
        ("fails undecided", "fails"),
        ("holds fails", "mixed"),
        ("holds fails undecided", "mixed"),
    ],
)
def test_one_verdict_of_several_dictionaries(judging: Any, results: str, expected: str) -> None:
    assert judging.result_of(set(results.split())) == expected


def evaluated(judging: Any, label: str, directory: Path = Path(), **values: float) -> Any:
    facts = {"n_atoms": 4096, "label": label, "target_l0": 32, "seed": 0}
    records = [EvalRecord(name=n, value=v, unit="x", n=9, spread=(v - 0.01, v + 0.01)) for n, v in values.items()]
    return judging.Evaluated(facts, records, directory, directory)


def test_only_dictionaries_of_about_one_l0_are_a_pair(judging: Any) -> None:
    one = evaluated(judging, "a", l0_mean=34.0)
    assert len(judging.pairs([one, evaluated(judging, "b", l0_mean=32.0)], "a", "b")) == 1
    assert not judging.pairs([one, evaluated(judging, "b", l0_mean=25.0)], "a", "b")


def test_values_are_told_by_target_and_seed(judging: Any) -> None:
    found = [pair(judging, fvu(0.1, 0.1), fvu(0.2, 0.1)), pair(judging, fvu(0.125, 0.1), fvu(0.25, 0.1), 1)]
    assert judging.told(found, "fvu") == "L0 32: 0.1, 0.125 against 0.2, 0.25"


@pytest.fixture
def claims(judging: Any) -> Any:
    import claims

    yield claims
    sys.modules.pop("claims")


def test_pursuit_is_judged_beyond_the_steps_that_it_was_trained_with(judging: Any, claims: Any, tmp_path: Path) -> None:
    def verdict(*values: float) -> str:
        found = [{"k": 8 * 2**i, "fvu": value} for i, value in enumerate(values)]
        (tmp_path / "steps.json").write_text(json.dumps({"of": {}, "found": found}))
        claim: str = claims.pursuit_steps([evaluated(judging, "matching_pursuit", tmp_path)]).verdict
        return claim

    assert verdict(0.3, 0.2, 0.1, 0.05, 0.02) == "holds"
    assert verdict(0.3, 0.2, 0.1, 0.2, 0.5) == "fails"


def test_atoms_no_more_orthogonal_than_all_pairs_are_undecided(judging: Any, claims: Any) -> None:
    def verdict(together: float, **others: float) -> str:
        of = evaluated(judging, "matching_pursuit", co_firing_cosine=together, next_atom_cosine=0.05, **others)
        claim: str = claims.conditional_orthogonality([of]).verdict
        return claim

    assert verdict(0.05, independent_cosine=0.08, mean_cosine=0.07) == "holds"
    assert verdict(0.05, independent_cosine=0.08, mean_cosine=0.055) == "undecided"
    assert verdict(0.09, independent_cosine=0.07, mean_cosine=0.06) == "fails"


def test_layers_are_matched_as_well_as_by_the_three_that_are_named(claims: Any) -> None:
    def verdict(itda: float, cka: float, linear: float = 0.9) -> str:
        values = {"itda": itda, "cka": cka, "svcca": 0.1, "relative": 0.1, "linear": linear}
        records = [
            {"name": f"layer_matching_{name}", "value": value, "spread": [value - 0.1, value + 0.1]}
            for name, value in values.items()
        ]
        claim: str = claims.itda_layers({"points": ["a"], "records": records}).verdict
        return claim

    assert verdict(0.6, 0.5) == "holds"
    assert verdict(0.55, 0.5) == "undecided"
    assert verdict(0.2, 0.5) == "fails"
