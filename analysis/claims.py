"""What the papers of seven dictionaries claim, and what came out here: one paragraph per claim, from what was run.

The figures behind a claim, over seeds, are its `figures`; the paragraph says what they are and when the claim holds.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from judging import (
    SAME_L0,
    Claim,
    Evaluated,
    Judged,
    Pair,
    grouped,
    judge,
    less,
    more,
    of_dictionaries,
    overall,
    pairs,
    summary,
    told,
)

Tests = dict[str, Callable[[float, float], bool]]


def of_pairs(claim: str, source: str, found: Sequence[Pair], tests: Tests, also: Sequence[str], finding: str) -> Claim:
    """A claim judged by `tests` over pairs, with further figures told, and both sides' L0 as measured."""
    judged = [judge(found, figure, test) for figure, test in tests.items()]
    further = [*(told(found, figure) for figure in also), grouped("L0 measured", found, Pair.measured_l0)]
    return Claim(claim, source, overall(j.verdict for j in judged), finding, (*judged, *further))


def mutual_choice(every: Sequence[Evaluated]) -> Claim:
    return of_pairs(
        "At equal L0, mutual choice has lower loss than TopK, and fewer dead features.",
        "Ayonrinde 2024, arXiv 2411.02124",
        pairs(every, "mutual_choice", "topk"),
        {"fvu": less, "ce_recovered_zero": more, "dead_fraction": less},
        ["l0_sd"],
        "Mutual choice against TopK. Its L0 varies over tokens and is set at inference by the threshold learnt in "
        "training; TopK's figures are those at that L0.",
    )


def aux_zipf(every: Sequence[Evaluated]) -> Claim:
    return of_pairs(
        "aux_zipf_loss leaves fewer features under-utilised.",
        "Ayonrinde 2024, arXiv 2411.02124 (our reconstruction)",
        pairs(every, "feature_choice", "feature_choice, no aux_zipf"),
        {"under_used_fraction": less},
        ["dead_fraction", "fvu"],
        "Feature choice with against without aux_zipf.",
    )


def gradient(every: Sequence[Evaluated]) -> Claim:
    return of_pairs(
        "Choosing features by activation times gradient recovers more cross-entropy at equal L0, and the features move "
        "logits more in arbitrary contexts.",
        "Olmo et al. 2024, arXiv 2411.10397 (our reconstruction)",
        pairs(every, "gradient", "topk"),
        {"ce_recovered_zero": more, "kl_recovered_zero": more, "logit_influence": more},
        ["fvu"],
        "Gradient against TopK; logit_influence is the logit change per unit of norm. Inference is without gradients.",
    )


def pursuit_steps(every: Sequence[Evaluated]) -> Claim:
    own, topk = (
        [e for e in every if e.label == label and e.measure("steps")] for label in ("matching_pursuit", "topk")
    )
    ways = []
    for e in own:
        trained = [step["fvu"] for step in e.measure("steps") if step["k"] >= e.facts["target_l0"]]
        falls = [later < earlier for earlier, later in pairwise(trained)]
        ways.append("holds" if all(falls) else "fails" if not any(falls) else "undecided")
    judged = of_dictionaries("fvu at more steps", ways, {})
    return Claim(
        "Matching pursuit keeps improving with more steps at inference than it was trained with.",
        "Costa et al. 2025, arXiv 2506.03093",
        judged.verdict,
        "FVU by steps at inference, mean and range over seeds, judged from the trained number on. Matching pursuit, "
        f"trained with 32: {_by_steps(own)}. TopK with other k at inference: {_by_steps(topk)}.",
        (judged,),
    )


def _by_steps(of: Sequence[Evaluated]) -> str:
    by_k: dict[int, list[float]] = {}
    for step in (step for e in of for step in e.measure("steps")):
        by_k.setdefault(step["k"], []).append(step["fvu"])
    return ", ".join(f"{summary(values)} at {k}" for k, values in by_k.items()) or "not run"


def conditional_orthogonality(every: Sequence[Evaluated]) -> Claim:
    ways, own = [], []
    for e in (e for e in every if e.label == "matching_pursuit"):
        together, drawn, general = (e.record(n) for n in ("co_firing_cosine", "independent_cosine", "mean_cosine"))
        if together and together.spread and drawn and general:
            low, high = together.spread
            both = drawn.value or 0.0, general.value or 0.0
            ways.append("holds" if high < min(both) else "fails" if low > max(both) else "undecided")
            own.append(e)
    judged = of_dictionaries("co_firing_cosine", ways, {})
    rival = told(pairs(every, "matching_pursuit", "topk"), "co_firing_cosine")
    return Claim(
        "Atoms that matching pursuit selects together are close to orthogonal, more so than its atoms in general.",
        "Costa et al. 2025, arXiv 2506.03093 (the paper's exact definition is not public)",
        judged.verdict,
        f"Mean |cosine| of atoms that fire together: {_with_intervals(own, 'co_firing_cosine')}; of successive ones "
        f"{_mean(own, 'next_atom_cosine')}; {_mean(own, 'independent_cosine')} if atoms fired independently, "
        f"{_mean(own, 'mean_cosine')} of all pairs, {math.sqrt(2 / (256 * math.pi)):.3g} of random directions in 256 "
        "dimensions. It holds where a dictionary's interval lies below what independent firing gives and below all "
        "pairs. Against TopK's it is told below.",
        (judged, rival),
    )


def _mean(of: Iterable[Evaluated], figure: str) -> str:
    return summary(value for e in of if (value := e.figure(figure)) is not None)


def _with_intervals(of: Sequence[Evaluated], figure: str) -> str:
    spans = [r.spread for e in of if (r := e.record(figure)) is not None and r.spread is not None]
    return _mean(of, figure) + _reach(spans)


def _reach(spans: Sequence[Sequence[float]]) -> str:
    """` [low, high]`, within which all of several 95 % intervals lie."""
    return f" [{min(s[0] for s in spans):.3g}, {max(s[1] for s in spans):.3g}]" if spans else ""


def variational(every: Sequence[Evaluated]) -> Claim:
    tests: Tests = {"dead_fraction": more, "fvu": more, "ce_recovered_zero": less}
    others = []
    for label, what in (("variational", "noise, beta 0.001"), ("variational, no noise", "no noise, beta 0.001")):
        found = pairs(every, label, "topk")
        each = [judge(found, figure, test) for figure, test in tests.items()]
        others += [Judged(f"{j.figure}: {what}", j.by_target) for j in each]
    claim = of_pairs(
        "A variational SAE has more dead features and reconstructs worse than TopK.",
        "Baker & Li 2025, arXiv 2509.22994",
        pairs(every, "variational, as released", "topk"),
        tests,
        [],
        "As released (no noise, beta 1) against TopK. Below it, without a verdict, with noise and beta 0.001, and the "
        "control, beta 0.001 without noise.",
    )
    return Claim(claim.claim, claim.source, claim.verdict, claim.finding, (*claim.figures, *others))


def itda(every: Sequence[Evaluated]) -> Claim:
    short, full = (pairs(every, label, "topk") for label in ("itda, 1 % of the rows", "itda"))
    claim = of_pairs(
        "ITDA reaches its quality with about 1 % of the tokens and seconds, at a modest cost in cross-entropy.",
        "Leask et al. 2025, arXiv 2505.17769",
        short,
        {"fvu": lambda a, b: a <= 1.1 * b, "ce_recovered_zero": lambda a, b: a >= b - 0.05},
        [],
        "ITDA built from 1 % of the rows against TopK trained on all of them; below it, built from all. It holds where "
        "1 % gives at most 1.1 times TopK's FVU, and at most 0.05 less of the cross-entropy. CPU seconds are of one "
        "thread; those of equal work differ up to sixfold here with what else ran.",
    )
    atoms = grouped("atoms: all rows", full, lambda pair: (pair.one.facts["n_atoms"], pair.rivals[0].facts["n_atoms"]))
    further = [grouped("CPU seconds", short, cpu_seconds), grouped("CPU seconds: all rows", full, cpu_seconds), atoms]
    whole = [Judged(f"{name}: all rows", told(full, name).by_target) for name in ("fvu", "ce_recovered_zero")]
    return Claim(claim.claim, claim.source, claim.verdict, claim.finding, (*claim.figures, *whole, *further))


def cpu_seconds(pair: Pair) -> tuple[float, float]:
    return pair.one.facts["cpu_seconds"], pair.rivals[0].facts["cpu_seconds"]


NEAR_SIMILARITY = 0.005
"""Two points of a host are one where CKA tells no more of them than this."""


def itda_layers(layers: dict[str, Any] | None) -> Claim:
    found = layers or {"records": [], "points": []}
    values = {
        r["name"].removeprefix("layer_matching_"): r
        for r in found["records"]
        if r["name"].startswith("layer_matching_")
    }
    n_points = len(found["points"])
    told_each = [f"{name} {r['value']:.2f} [{r['spread'][0]:.2f}, {r['spread'][1]:.2f}]" for name, r in values.items()]
    result = "not run"
    judged: tuple[Judged, ...] = ()
    if "itda" in values:
        own, (low, high) = values["itda"]["value"], values["itda"]["spread"]
        others = [values[name] for name in ("cka", "svcca", "relative")]
        result = "fails" if any(high < o["spread"][0] for o in others) else "undecided"
        result = "holds" if all(low >= o["value"] for o in others) else result
        n_for = sum(own >= o["value"] for o in others)
        n_clear = sum(high < o["spread"][0] or low > o["spread"][1] for o in others)
        judged = (Judged("layer_matching against three", {}, result, n_for, 3 - n_for, n_clear, 3),)
    return Claim(
        "The Jaccard index of ITDA's atoms matches layers between models at least as well as CKA, SVCCA and relative "
        "representations.",
        "Leask et al. 2025, arXiv 2505.17769",
        result,
        f"Between the embedded host and one of another seed and half its size, {n_points} points, without self-pairs, "
        f"over {_n_tokens(values)} tokens: share of points whose most similar point of the other host is the one of "
        f"the same name: {'; '.join(told_each) or 'not run'}. Chance: 1 / {n_points or '?'}. It holds where ITDA's "
        "interval reaches no lower than what any of the three has, and fails where it lies below the interval of one; "
        f"linear regression is ours.{_near_points(found['points'], values.get('cka'))}",
        judged,
    )


def _n_tokens(values: dict[str, Any]) -> str:
    counts = {r["config"]["n_tokens"] for r in values.values() if "config" in r}
    return f"{max(counts):,}" if counts else "?"


def _near_points(points: Sequence[str], cka: dict[str, Any] | None) -> str:
    """Which points the two hosts themselves hardly tell apart, so that taking one for the other is no clear mistake."""
    rows = [] if cka is None else list((cka.get("series") or {}).values())
    near = [
        f"{one} to itself {row[i]:.3f}, to {other} {row[j]:.3f}"
        for i, (one, row) in enumerate(zip(points, rows))
        for j, other in enumerate(points)
        if i != j and abs(row[i] - row[j]) <= NEAR_SIMILARITY
    ]
    return (
        f" Some points are nearly one, so that 'same name' is a hard rule for them (CKA: {'; '.join(near)})."
        if near
        else ""
    )


def top_afa(every: Sequence[Evaluated]) -> Claim:
    claim = of_pairs(
        "Top-AFA needs no k and reconstructs better than TopK (by reviews and our notes: only at high L0).",
        "Lee et al. 2025, arXiv 2503.24277",
        pairs(every, "top_afa", "topk"),
        {"fvu": less},
        ["ce_recovered_zero"],
        f"It chooses its L0 itself; TopK's figures are those at that L0, from a run within {SAME_L0:.0%} of it.",
    )
    own = [e for e in every if e.label == "top_afa"]
    verdict = "not tested" if claim.verdict == "not run" and own else claim.verdict
    return Claim(claim.claim, claim.source, verdict, claim.finding, claim.figures)


def gradients_at_inference(every: Sequence[Evaluated]) -> Claim:
    found = [measured for e in every if (measured := e.measure("gradients_at_inference"))]
    spans = [measured["difference"][1:] for measured in found]
    judged = of_dictionaries("difference of CE recovered", [_side(low, high) for low, high in spans], {})
    parts = []
    for way in found[0]["recovered"] if found else ():
        added = ", ".join(
            f"{summary(1000 * measured['added'][share][way] for measured in found)} with {share} of the error put in"
            for share in found[0]["added"]
        )
        fvu, recovered = (summary(measured[figure][way] for measured in found) for figure in ("fvu", "recovered"))
        parts.append(f"{way}: CE recovered {recovered}, FVU {fvu}, loss rises by {added} (thousandths of a nat)")
    difference = summary(measured["difference"][0] for measured in found) + _reach(spans)
    return Claim(
        "A gradient dictionary recovers more cross-entropy if gradients choose its features at inference too.",
        "our own question; Olmo et al. 2024 leave inference open",
        judged.verdict,
        "Features chosen without gradients, with them, or with those of other rows, means over seeds at L0 32. "
        f"{'. '.join(parts) or 'Not run'}. CE recovered with less without: {difference}.",
        (judged,),
    )


def _side(low: float, high: float) -> str:
    """What an interval of a difference says of its being greater than 0."""
    return "holds" if low > 0 else "fails" if high < 0 else "undecided"


def amortisation_gap(every: Sequence[Evaluated]) -> Claim:
    found = [measured for e in every if (measured := e.measure("amortisation"))]
    spans = [measured["difference"][1:] for measured in found]
    judged = of_dictionaries("difference of FVU", [_side(-high, -low) for low, high in spans], {})
    figure = {name: summary(m[name] for m in found) for name in ("fvu_shrinkage", "l0_shrinkage", "fvu_encoder")}
    difference = summary(m["difference"][0] for m in found) + _reach(spans)
    return Claim(
        "Over TopK's own atoms, iterative shrinkage (CEL0) reconstructs better than TopK's encoder (amortisation gap).",
        "the baseline of this toolkit",
        judged.verdict,
        f"FVU {figure['fvu_shrinkage']} at L0 {figure['l0_shrinkage']} by shrinkage against {figure['fvu_encoder']} at "
        f"L0 {summary(m['l0_encoder'] for m in found)} by the encoder: difference {difference}; "
        f"{max((m['n_rows'] for m in found), default=0):,} rows each.",
        (judged,),
    )


def all_claims(every: Sequence[Evaluated], layers: dict[str, Any] | None) -> list[Claim]:
    one = (mutual_choice, aux_zipf, gradient, pursuit_steps, conditional_orthogonality, variational, itda)
    own = (gradients_at_inference, amortisation_gap)
    return [*(f(every) for f in one), itda_layers(layers), top_afa(every), *(f(every) for f in own)]
