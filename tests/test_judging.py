"""How the report judges claims: no verdict that its data cannot carry."""

import json
import math
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


def pair(judging: Any, one: EvalRecord, other: EvalRecord, seed: int = 0, target: int = 32) -> Any:
    facts = {"n_atoms": 4096, "label": "x", "target_l0": target, "seed": seed}
    own, rival = (judging.Evaluated(facts, [r], Path(), Path()) for r in (one, other))
    return judging.Pair(target, seed, own, (rival,))


def seeds(judging: Any, one: EvalRecord, other: EvalRecord, target: int = 32) -> list[Any]:
    return [pair(judging, one, other, seed, target) for seed in range(judging.SEEDS)]


def fvu(value: float, half: float) -> EvalRecord:
    return EvalRecord(name="fvu", value=value, unit="fraction", n=900, spread=(value - half, value + half))


def dead(count: int) -> EvalRecord:
    return EvalRecord(name="dead_fraction", value=count / 4096, unit="fraction of features", n=9)


def test_all_seeds_one_way_decide_and_fewer_do_not(judging: Any) -> None:
    def verdict(*found: Any) -> str:
        result: str = judging.judge(found, "fvu", judging.less).verdict
        return result

    clear, unclear = (seeds(judging, fvu(0.1, 0.01), fvu(0.2, half)) for half in (0.02, 0.1))
    assert verdict(*clear) == verdict(*unclear) == "holds"
    assert verdict(*clear[:-1]) == "undecided", "two seeds, however clear"
    assert verdict(*(seeds(judging, fvu(0.2, 0.1), fvu(0.1, 0.1)))) == "fails"
    against = pair(judging, fvu(0.2, 0.1), fvu(0.1, 0.1), 0, 64)
    assert verdict(*unclear, against) == "undecided", "one pair against"
    assert verdict(*unclear, *seeds(judging, fvu(0.2, 0.1), fvu(0.1, 0.1), 64)) == "mixed"
    assert verdict(*clear, pair(judging, fvu(0.2, 0.01), fvu(0.1, 0.01), 0, 64)) == "mixed"
    assert verdict() == "not run"


def test_pairs_of_one_seed_are_not_several_seeds(judging: Any) -> None:
    """Five L0 of one seed point one way together: that is one seed's word."""
    found = [pair(judging, fvu(0.1, 0.1), fvu(0.2, 0.1), 0, 8 * 2**i) for i in range(5)]
    assert judging.judge(found, "fvu", judging.less).verdict == "undecided"


def test_a_verdict_says_how_strong_it_is(judging: Any) -> None:
    clear, unclear = (seeds(judging, fvu(0.1, 0.01), fvu(0.2, half)) for half in (0.02, 0.1))
    strength = judging.judge(clear, "fvu", judging.less).strength
    assert strength == "fvu holds clearly: 3 for, 0 against of 3, 3 clear"
    strength = judging.judge(unclear, "fvu", judging.more).strength
    assert strength == "fvu fails by direction: 0 for, 3 against of 3, 0 clear"


def test_a_few_dead_features_more_or_less_are_not_clear(judging: Any) -> None:
    def judged(one: int, other: int) -> Any:
        return judging.judge(seeds(judging, dead(one), dead(other)), "dead_fraction", judging.less)

    assert judged(2, 4).n_clear == 0 and judged(2, 40).n_clear == 3


@pytest.mark.parametrize("figure", ["few", "many"])
def test_a_figure_of_few_items_says_of_how_many(judging: Any, figure: str) -> None:
    n = {"few": 12, "many": 5000}[figure]
    records = [EvalRecord(name=figure, value=v, unit="nats", n=n, n_unit="features") for v in (1.0, 2.0)]
    told = judging.judge(seeds(judging, *records), figure, judging.less).figure
    assert told == {"few": "few (12 features)", "many": "many"}[figure]


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
    assert judging.overall(figures.split()) == expected


def test_equal_values_point_nowhere(judging: Any) -> None:
    """Seeds without a dead feature on either side say neither that there are fewer nor that there are not."""
    ties = seeds(judging, dead(0), dead(0))
    for test in (judging.less, judging.more):
        assert judging.judge(ties, "dead_fraction", test).verdict == "undecided"
    clear = seeds(judging, dead(2), dead(40), 64)
    judged = judging.judge([*ties, *clear], "dead_fraction", judging.less)
    assert (judged.verdict, judged.n_for, judged.n) == ("holds", 3, 6)
    not_more = judging.judge(ties, "dead_fraction", lambda one, other: one <= other)
    assert not_more.verdict == "holds", "no tie: equal is meant"


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
    assert judging.of_dictionaries("figure", results.split(), {}).verdict == expected


def evaluated(
    judging: Any, label: str, directory: Path = Path(), seed: int = 0, target: int = 32, **values: float
) -> Any:
    facts = {"n_atoms": 4096, "label": label, "target_l0": target, "seed": seed, "n_tokens": 9, "cpu_seconds": math.nan}
    records = [EvalRecord(name=n, value=v, unit="x", n=9, spread=(v - 0.01, v + 0.01)) for n, v in values.items()]
    return judging.Evaluated(facts, records, directory, directory)


def test_only_dictionaries_of_about_one_l0_are_a_pair(judging: Any) -> None:
    one = evaluated(judging, "a", l0_mean=34.0)
    assert len(judging.pairs([one, evaluated(judging, "b", l0_mean=32.0)], "a", "b")) == 1
    assert not judging.pairs([one, evaluated(judging, "b", l0_mean=25.0)], "a", "b")


@pytest.mark.parametrize(
    ("figure", "at_16", "at_32", "expected"),
    [
        ("fvu", 0.4, 0.2, 6.4 / 18),  # as 1 / L0
        ("ce_recovered_zero", 0.6, 0.8, 1 - 6.4 / 18),
        ("l0_sd", 4.0, 5.0, 4 + math.log2(18 / 16)),
        ("dead_fraction", 0.2, 0.0, 0.2 - 0.2 * math.log2(18 / 16)),
    ],
)
def test_a_rival_is_taken_at_the_pairs_l0(
    judging: Any, figure: str, at_16: float, at_32: float, expected: float
) -> None:
    one = evaluated(judging, "a", target=16, l0_mean=18.0, **{figure: 0.3})
    rivals = [evaluated(judging, "b", target=t, l0_mean=t, **{figure: v}) for t, v in ((16, at_16), (32, at_32))]
    (found,) = judging.pairs([one, *rivals], "a", "b")
    assert found.values(figure) == pytest.approx((0.3, expected))


def test_a_rival_at_more_l0_is_not_flattered(judging: Any) -> None:
    """FVU .16 at 34.5 is no better than .161 at 32 where the rival's falls to .12 at 64."""
    own = [evaluated(judging, "a", seed=seed, l0_mean=34.5, fvu=0.16) for seed in range(3)]
    rivals = [
        evaluated(judging, "b", seed=seed, target=target, l0_mean=target, fvu=value)
        for seed in range(3)
        for target, value in ((32, 0.161), (64, 0.12))
    ]
    found = judging.pairs([*own, *rivals], "a", "b")
    assert judging.judge(found, "fvu", judging.less).verdict == "fails"
    alone = judging.pairs([*own, *(r for r in rivals if r.facts["target_l0"] == 32)], "a", "b")
    assert judging.judge(alone, "fvu", judging.less).verdict == "not run", "one run has no line to move along"


def test_a_moved_share_is_not_below_nothing_and_its_interval_moves_along(judging: Any) -> None:
    def share(value: float) -> EvalRecord:
        return EvalRecord(name="dead_fraction", value=value, unit="fraction of features", n=9, spread=(value, 1))

    moved = judging.at_l0(70.0, [(64.0, share(0.0)), (32.0, share(0.1))])
    assert moved.value == moved.spread[0] == 0 and moved.spread[1] < 1


def test_values_are_told_by_target_over_seeds(judging: Any) -> None:
    found = [pair(judging, fvu(0.1, 0.1), fvu(0.2, 0.1)), pair(judging, fvu(0.125, 0.1), fvu(0.2, 0.1), 1)]
    assert judging.told(found, "fvu").by_target == {32: "0.113 (0.1 to 0.125) against 0.2"}
    assert judging.summary([math.nan]) == "-" and judging.summary([1.0, math.nan]) == "1"
    assert [judging.number(v) for v in (0.98765, 0.5, 300032.0, 32.0)] == ["0.9877", "0.5", "300,032", "32"]


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
    def verdict(itda: float, cka: float, linear: float = 0.9) -> tuple[str, str]:
        values = {"itda": itda, "cka": cka, "svcca": 0.1, "relative": 0.1, "linear": linear}
        records = [
            {"name": f"layer_matching_{name}", "value": value, "spread": [value - 0.1, value + 0.1]}
            for name, value in values.items()
        ]
        claim = claims.itda_layers({"points": ["a"], "records": records})
        return claim.verdict, claim.strength.split(": ")[1]

    assert verdict(0.6, 0.5) == ("holds", "3 for, 0 against of 3, 2 clear")
    assert verdict(0.55, 0.5) == ("undecided", "3 for, 0 against of 3, 2 clear")
    assert verdict(0.2, 0.5) == ("fails", "2 for, 1 against of 3, 1 clear")


def test_points_that_are_nearly_one_are_told(claims: Any) -> None:
    cka = [[0.78, 0.778, 0.2], [0.774, 0.77, 0.2], [0.1, 0.1, 0.9]]
    record = {"value": 0.5, "spread": [0.4, 0.6], "series": {str(i): row for i, row in enumerate(cka)}}
    records = [{"name": f"layer_matching_{name}", **record} for name in ("itda", "cka", "svcca", "relative")]
    finding = claims.itda_layers({"points": ["mlp", "out", "next"], "records": records}).finding
    assert "mlp to itself 0.780, to out 0.778; out to itself 0.770, to mlp 0.774" in finding and "next" not in finding


def test_itda_is_judged_by_what_one_percent_of_the_rows_gives(judging: Any, claims: Any) -> None:
    def verdict(fvu: float, *labels: str) -> str:
        values = {"l0_mean": 32.0, "ce_recovered_zero": 0.9}
        every = [evaluated(judging, label, seed=s, fvu=fvu, **values) for s in range(3) for label in labels]
        every += [evaluated(judging, "topk", seed=s, fvu=0.1, **values) for s in range(3)]
        result: str = claims.itda(every).verdict
        return result

    assert verdict(0.105, "itda, 1 % of the rows") == "holds"
    assert verdict(0.2, "itda, 1 % of the rows") == "mixed"
    assert verdict(0.05, "itda") == "not run"


@pytest.fixture
def report_page(claims: Any) -> Any:
    import report_page

    yield report_page
    sys.modules.pop("report_page")


def test_tables_hold_seeds_together_and_show_the_measured_l0(judging: Any, report_page: Any) -> None:
    every = [evaluated(judging, "jumprelu", seed=s, target=16, l0_mean=35.0 + s, fvu=0.1) for s in range(3)]
    (row,) = report_page.main_table(every).rows
    assert row[:4] == ("jumprelu", "16", "36 (35 to 37)", "0.1") and row[-1] == "-", "no nan"
    assert report_page.label_of(every[0]) == "jumprelu (L0 35)"


def test_steering_by_class_is_told_less_its_controls(judging: Any, report_page: Any) -> None:
    areas = {"class_steering_area": 0.5, "class_steering_area_random": 0.2, "class_steering_area_shuffled": 0.4}
    every = [evaluated(judging, "topk", l0_mean=32.0, steering_area=2.0, steering_area_random=3.0, **areas)]
    (table,) = report_page.round_tables(every)
    assert table.rows[0][2:6] == ("0.3", "0.1", "2", "3")
    assert table.columns[2] == "class_steering_area less random (n 9 tokens)"
    assert "the greater area in 1 of 1 dictionaries" in table.note
