"""What the papers of seven dictionaries claim, and what came out here: one paragraph per claim, from what was run."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from judging import SAME_L0, Claim, Evaluated, Pair, grouped, less, more, pairs, result_of, same_l0, told, verdict


def mutual_choice(every: Sequence[Evaluated]) -> Claim:
    found = pairs(every, "mutual_choice", "topk")
    return Claim(
        "At equal L0, mutual choice has lower loss than TopK, and fewer dead features.",
        "Ayonrinde 2024, arXiv 2411.02124",
        verdict(found, {"fvu": less, "ce_recovered_zero": more, "dead_fraction": less}),
        f"Mutual choice against TopK: FVU {told(found, 'fvu')}. CE recovered {told(found, 'ce_recovered_zero')}. Dead "
        f"features {told(found, 'dead_fraction')}. Its L0 varies over tokens: sd {told(found, 'l0_sd')}; mean L0 at "
        f"inference, by the learnt threshold, {told(found, 'l0_mean')}.",
    )


def aux_zipf(every: Sequence[Evaluated]) -> Claim:
    found = pairs(every, "feature_choice", "feature_choice, no aux_zipf")
    return Claim(
        "aux_zipf_loss leaves fewer features under-utilised.",
        "Ayonrinde 2024, arXiv 2411.02124 (our reconstruction)",
        verdict(found, {"under_used_fraction": less}),
        f"Feature choice with against without aux_zipf: under-used features {told(found, 'under_used_fraction')}; dead "
        f"features {told(found, 'dead_fraction')}; FVU {told(found, 'fvu')}.",
    )


def gradient(every: Sequence[Evaluated]) -> Claim:
    found = pairs(every, "gradient", "topk")
    return Claim(
        "Choosing features by activation times gradient recovers more cross-entropy at equal L0, and the features move "
        "logits more in arbitrary contexts.",
        "Olmo et al. 2024, arXiv 2411.10397 (our reconstruction)",
        verdict(found, {"ce_recovered_zero": more, "kl_recovered_zero": more, "logit_influence": more}),
        f"Gradient against TopK: CE recovered {told(found, 'ce_recovered_zero')}; KL recovered "
        f"{told(found, 'kl_recovered_zero')}; FVU {told(found, 'fvu')}; logit change per unit of norm "
        f"{told(found, 'logit_influence')}. Inference is without gradients.",
    )


def pursuit_steps(every: Sequence[Evaluated]) -> Claim:
    own = [e for e in every if e.facts["label"] == "matching_pursuit" and e.measure("steps")]
    falls, texts = [], []
    for e in own:
        fvu = [(step["k"], step["fvu"]) for step in e.measure("steps")]
        trained = [(k, v) for k, v in fvu if k >= e.facts["target_l0"]]
        falls += [later < earlier for (_, earlier), (_, later) in pairwise(trained)]
        texts.append(f"{e.name}: " + ", ".join(f"{v:.3g} at {k}" for k, v in fvu))
    result = "not run" if not falls else "holds" if all(falls) else "mixed" if any(falls) else "fails"
    topk = [e for e in every if e.facts["label"] == "topk" and e.measure("steps")]
    others = [f"{e.name}: " + ", ".join(f"{s['fvu']:.3g} at {s['k']}" for s in e.measure("steps")) for e in topk]
    return Claim(
        "Matching pursuit keeps improving with more steps at inference than it was trained with.",
        "Costa et al. 2025, arXiv 2506.03093",
        result,
        f"FVU by steps at inference, judged from the trained number on. {'; '.join(texts) or 'not run'}. TopK with "
        "other k at inference. "
        f"{'; '.join(others) or 'not run'}.",
    )


def conditional_orthogonality(every: Sequence[Evaluated]) -> Claim:
    found = pairs(every, "matching_pursuit", "topk")
    texts, results = [], set()
    for e in every:
        together = next((r for r in e.records if r.name == "co_firing_cosine"), None)
        drawn, general = e.figure("independent_cosine"), e.figure("mean_cosine")
        if e.facts["label"] == "matching_pursuit" and together and together.value and together.spread and drawn:
            assert general is not None
            low, high = together.spread
            results.add(
                "holds" if high < min(drawn, general) else "fails" if low > max(drawn, general) else "undecided"
            )
            texts.append(
                f"{e.name}: {together.value:.4g} [{low:.4g}, {high:.4g}], of successive ones "
                f"{e.figure('next_atom_cosine'):.4g}; {drawn:.4g} if atoms fired independently, {general:.4g} of all "
                "pairs"
            )
    return Claim(
        "Atoms that matching pursuit selects together are close to orthogonal, more so than its atoms in general.",
        "Costa et al. 2025, arXiv 2506.03093 (the paper's exact definition is not public)",
        result_of(results),
        f"Mean |cosine| of atoms that fire together: {'; '.join(texts) or 'not run'}; of random directions in 256 "
        f"dimensions {math.sqrt(2 / (256 * math.pi)):.3g}. It holds where the interval lies below both comparisons. "
        f"Against TopK's: {told(found, 'co_firing_cosine')}.",
    )


def variational(every: Sequence[Evaluated]) -> Claim:
    found = pairs(every, "variational, as released", "topk")
    noisy = pairs(every, "variational", "topk")
    control = pairs(every, "variational, no noise", "topk")
    tests = {"dead_fraction": more, "fvu": more, "ce_recovered_zero": less}
    return Claim(
        "A variational SAE has more dead features and reconstructs worse than TopK.",
        "Baker & Li 2025, arXiv 2509.22994",
        verdict(found, tests),
        f"As released (no noise, beta 1) against TopK: dead features {told(found, 'dead_fraction')}; FVU "
        f"{told(found, 'fvu')}; CE recovered {told(found, 'ce_recovered_zero')}. With noise, beta 0.001 "
        f"({verdict(noisy, tests)}): dead features {told(noisy, 'dead_fraction')}; FVU {told(noisy, 'fvu')}; CE "
        f"recovered {told(noisy, 'ce_recovered_zero')}. The control, no noise and beta 0.001: dead features "
        f"{told(control, 'dead_fraction')}; FVU {told(control, 'fvu')}.",
    )


def itda(every: Sequence[Evaluated]) -> Claim:
    found = pairs(every, "itda", "topk")
    parts, reached = [], []
    for pair in found:
        goal = pair.other.figure("fvu")
        found_at = None if goal is None else reached_after(pair.one.run, goal)
        total, when = pair.other.facts["n_tokens"], "never reached"
        if found_at is not None:
            tokens, seconds = found_at
            reached.append(tokens / total)
            when = (
                f"reached after {tokens:,} ({tokens / total:.1%}) and {seconds:.0f} s of wall clock beside other work"
            )
        own, other = cpu_seconds(pair)
        parts.append(
            f"L0 {pair.target}, seed {pair.seed}: {pair.one.facts.get('n_atoms', '?')} atoms; TopK's held-out FVU "
            f"after {total:,} tokens is {when}; {own:.0f} CPU seconds in all against {other:.0f}"
        )
    short = pairs(every, "itda, 1 % of the rows", "topk")
    share = verdict(short, {"fvu": lambda a, b: a <= 1.1 * b, "ce_recovered_zero": lambda a, b: a >= b - 0.05})
    if share == "not run" and found:
        share = "holds" if reached and max(reached) <= 0.02 else "mixed" if reached else "fails"
    return Claim(
        "ITDA reaches its quality with about 1 % of the tokens and seconds, at a modest cost in cross-entropy.",
        "Leask et al. 2025, arXiv 2505.17769",
        share,
        f"ITDA against TopK: FVU {told(found, 'fvu')}; CE recovered {told(found, 'ce_recovered_zero')}. "
        f"{'. '.join([*parts, ''])}Built from 1 % of the rows: FVU {told(short, 'fvu')}; CE recovered "
        f"{told(short, 'ce_recovered_zero')}; CPU seconds {grouped(short, cpu_seconds)}. It holds if 1 % of the rows "
        "give at most 1.1 times TopK's FVU and 0.05 less of the cross-entropy.",
    )


def cpu_seconds(pair: Pair) -> tuple[float, float]:
    return pair.one.facts["cpu_seconds"], pair.other.facts["cpu_seconds"]


def reached_after(run: Path, fvu: float, window: int = 5) -> tuple[int, float] | None:
    """(tokens, wall-clock seconds) after which the mean loss of `window` logged steps is first at most `fvu`."""
    metrics, timing = ([json.loads(line) for line in (run / f"{name}.jsonl").open()] for name in ("metrics", "timing"))
    losses = [line["loss"] for line in metrics]
    for i in range(window, len(metrics) + 1):
        if sum(losses[i - window : i]) / window <= fvu:
            last = metrics[i - 1]
            return last["n_tokens"], sum(line["seconds"] for line in timing if line["step"] <= last["step"])
    return None


def itda_layers(layers: dict[str, Any] | None) -> Claim:
    values = {
        r["name"].removeprefix("layer_matching_"): r
        for r in (layers or {"records": []})["records"]
        if r["name"].startswith("layer_matching_")
    }
    n_points = len((layers or {}).get("points", []))
    told_each = [f"{name} {r['value']:.2f} [{r['spread'][0]:.2f}, {r['spread'][1]:.2f}]" for name, r in values.items()]
    result = "not run"
    if "itda" in values:
        low, high = values["itda"]["spread"]
        others = [values[name] for name in ("cka", "svcca", "relative")]
        result = "fails" if any(high < o["spread"][0] for o in others) else "undecided"
        result = "holds" if all(low >= o["value"] for o in others) else result
    return Claim(
        "The Jaccard index of ITDA's atoms matches layers between models at least as well as CKA, SVCCA and relative "
        "representations.",
        "Leask et al. 2025, arXiv 2505.17769",
        result,
        f"Between the embedded host and one of another seed and half its size, {n_points} points, without self-pairs; "
        f"share of points matched rightly: {'; '.join(told_each) or 'not run'}. Chance: 1 / {n_points or '?'}. It "
        "holds where ITDA's interval reaches no lower than what any of the three has, and fails where it lies below "
        "the interval of one; linear regression is ours.",
    )


def top_afa(every: Sequence[Evaluated]) -> Claim:
    rivals = [e for e in every if e.facts["label"] == "topk" and e.figure("l0_mean") is not None]
    texts, near = [], []
    for e in (e for e in every if e.facts["label"] == "top_afa"):
        l0, seed = e.figure("l0_mean") or math.inf, e.facts["seed"]
        own = [r for r in rivals if r.facts["seed"] == seed]
        if not own:
            continue
        rival = min(own, key=lambda r: abs((r.figure("l0_mean") or 0) - l0))
        at = rival.figure("l0_mean") or 0.0
        beaten = at < l0 and (rival.figure("fvu") or math.inf) < (e.figure("fvu") or 0)
        if same_l0(at, l0) or beaten:
            near.append(Pair(e.facts["target_l0"], seed, e, rival))
        texts.append(
            f"seed {seed}: FVU {e.figure('fvu'):.3g} at its own L0 of {l0:.0f}; TopK {rival.figure('fvu'):.3g} at L0 "
            f"{at:.0f}"
        )
    return Claim(
        "Top-AFA needs no k and reconstructs better than TopK (by reviews and our notes: only at high L0).",
        "Lee et al. 2025, arXiv 2503.24277",
        verdict(near, {"fvu": less}) if near or not texts else "not tested (no rival has its L0)",
        f"{'; '.join(texts) or 'not run'}. It chooses its L0 itself; a rival counts within {SAME_L0:.0%} of that, and "
        "one that is better with fewer features.",
    )


def gradients_at_inference(every: Sequence[Evaluated]) -> Claim:
    results, texts = set(), []
    for e in every:
        if found := e.measure("gradients_at_inference"):
            value, low, high = found["difference"]
            results.add("holds" if low > 0 else "fails" if high < 0 else "undecided")
            by_way = ", ".join(f"{value:.4f} {way}" for way, value in found["recovered"].items())
            added = (
                f"with {share} of the error put in, loss rises by "
                + ", ".join(f"{1000 * value:.1f} {way}" for way, value in ways.items())
                for share, ways in found["added"].items()
            )
            fvu = ", ".join(f"{value:.3g}" for value in found["fvu"].values())
            texts.append(
                f"{e.name}: CE recovered {by_way} (with less without: {value:+.4f} [{low:.4f}, {high:.4f}]); FVU in "
                f"that order {fvu}; in thousandths of a nat, {'; '.join(added)}"
            )
    return Claim(
        "A gradient dictionary recovers more cross-entropy if gradients choose its features at inference too.",
        "our own question; Olmo et al. 2024 leave inference open",
        result_of(results),
        f"Features chosen without gradients, with them, or with those of other rows. {'. '.join(texts) or 'not run'}.",
    )


def amortisation_gap(every: Sequence[Evaluated]) -> Claim:
    results, texts = set(), []
    for e in every:
        if found := e.measure("amortisation"):
            value, low, high = found["difference"]
            results.add("holds" if high < 0 else "fails" if low > 0 else "undecided")
            texts.append(
                f"{e.name}: FVU {found['fvu_shrinkage']:.4f} at L0 {found['l0_shrinkage']:.1f} against "
                f"{found['fvu_encoder']:.4f} at L0 {found['l0_encoder']:.1f} (difference {value:+.4f} [{low:.4f}, "
                f"{high:.4f}]), {found['n_rows']:,} rows"
            )
    return Claim(
        "Over TopK's own atoms, iterative shrinkage (CEL0) reconstructs better than TopK's encoder (amortisation gap).",
        "the baseline of this toolkit",
        result_of(results),
        "; ".join(texts) or "not run",
    )


def all_claims(every: Sequence[Evaluated], layers: dict[str, Any] | None) -> list[Claim]:
    one = (mutual_choice, aux_zipf, gradient, pursuit_steps, conditional_orthogonality, variational, itda)
    own = (gradients_at_inference, amortisation_gap)
    return [*(f(every) for f in one), itda_layers(layers), top_afa(every), *(f(every) for f in own)]
