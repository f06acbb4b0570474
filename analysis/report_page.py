"""The page, the tables and the text of `evaluate_dictionaries.py`: verdicts first, then claims, figures and plots."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from claims import all_claims
from judging import FEW, Claim, Evaluated, same_l0, summary

from saetools.atomic import write_text
from saetools.dashboard.evaluations import COLOURS, curves, scores, trade_offs
from saetools.dashboard.panel import Panel, layout
from saetools.dashboard.report import Section, Table, report_page
from saetools.evals.comparison import comparison_csv

TITLE = "Dictionaries of the embedded host"
MAIN_TARGET = 32


def write_report(every: Sequence[Evaluated], layers: dict[str, Any] | None, page: Path) -> None:
    """The page at `page`, and beside it a CSV of every figure and the claims and tables as Markdown."""
    if not every:
        raise SystemExit("no dictionary is evaluated yet")
    claims = all_claims(every, layers)
    named = {e.name: e.records for e in every}
    at_main = [e for e in every if e.label == "top_afa" or e.facts["target_l0"] == MAIN_TARGET]
    main = {label_of(e): e.records for e in at_main if e.facts["seed"] == 0}
    labels = {e.name: e.label for e in every}
    first = every[0]
    facts = [
        ("host", ", ".join(sorted({e.spec["host"] for e in every}))),
        ("point", ", ".join(sorted({e.spec["point"] for e in every}))),
        ("dictionaries", str(len(every))),
        ("seeds", ", ".join(sorted({str(e.facts["seed"]) for e in every}))),
        ("training rows each", f"{max(e.facts['n_tokens'] for e in every):,}"),
        ("held-out rows", f"{next(r.n for r in first.records if r.name == 'fvu'):,}"),
    ]
    texts = (
        Section("Verdicts", (FIRST,), tables=(claim_table(claims),)),
        Section("Claims", (INTRODUCTION, *(paragraph(claim) for claim in claims))),
        Section("Figures behind the claims", (BEHIND,), tables=(figures_behind(claims),)),
        Section("All dictionaries", (MEANS,), tables=(main_table(every),)),
        Section(f"Every round at L0 {MAIN_TARGET}", (ROUNDS,), tables=tuple(round_tables(at_main))),
    )
    charts = (
        Section("Trade-offs", (ALL_UNITS,), tuple(trade_offs(named, labels))),
        Section("Steps at inference", (STEPS,), tuple(steps(every))),
        Section("Scores and their floors", (FLOORS,), tuple(scores(main))),
        Section("Curves", (f"L0 {MAIN_TARGET}, seed 0.",), tuple(curves(main))),
        Section("Layers matched between two hosts", (LAYERS,), tuple(layer_panels(layers))),
    )
    report_page(TITLE, facts, [*texts, *(section for section in charts if section.panels)], page)
    write_text(page.with_suffix(".csv"), comparison_csv(named))
    write_text(page.with_suffix(".md"), markdown(texts))


FIRST = (
    "Found at this scale: a small host, few training tokens, three seeds. Beside each verdict the pairs (or, where a "
    "claim is of one kind alone, the dictionaries) for and against it, and how many are clear: beyond both intervals. "
    "By direction: all pairs point one way, but at most half are clear, so the difference is small."
)
INTRODUCTION = (
    "A pair is two dictionaries of one seed, so of the same rows, at one L0: where the measured L0 differ, the "
    "rival's figure is moved to the other's along the line through its two runs nearest in L0 (log FVU, or log of the "
    "share not recovered, over log L0). A figure is decided where no pair points the other way and, at one L0 at "
    "least, all three seeds point so. Pairs are not independent: those of a seed share its rows, and all share the "
    "held-out text. Three seeds that differ in nothing point one way in 1 case of 4 (analysis/judging.py). All "
    "dictionaries share stream, learning rate, initialisation and dead-feature rule. 'Not run' says that the "
    "comparison has not come that far (compare_dictionaries.md)."
)
BEHIND = (
    "By L0 target, means over seeds (range in parentheses) of the dictionary against its rival, moved to the "
    "dictionary's L0. Without a verdict: told, not judged."
)
MEANS = (
    "Means over seeds and, in parentheses, their range, on held-out tokens. L0 is measured; its target was asked for."
)
ROUNDS = (
    "Means over seeds, range in parentheses; in brackets the 95 % interval of a figure that is one for all seeds. Each "
    "dictionary's own figures and intervals are in the CSV beside this page."
)
ALL_UNITS = "A colour per kind; a point per L0 target and seed. 95 % intervals over held-out documents."
STEPS = "The same weights with another number of steps (or k) than they were trained with."
FLOORS = (
    f"L0 {MAIN_TARGET}, seed 0. Filled: the dictionary, with its 95 % interval. Hollow: the same measure for random "
    "atoms, or by chance."
)
LAYERS = (
    "Share of points of either host whose most similar point of the other host is the one of the same name, with 95 % "
    "intervals over points; the line is chance. Self-pairs are left out."
)


def label_of(e: Evaluated) -> str:
    """The label, with the measured L0 where that is not about the target."""
    l0 = e.figure("l0_mean")
    return e.label if l0 is None or same_l0(l0, e.facts["target_l0"]) else f"{e.label} (L0 {l0:.0f})"


def paragraph(claim: Claim) -> str:
    return f"**{claim.claim}** ({claim.source}) **{_first_upper(claim.verdict)}.** {claim.finding}"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def claim_table(claims: Sequence[Claim]) -> Table:
    rows = tuple((claim.claim, claim.verdict, claim.strength or "-") for claim in claims)
    return Table(("claim", "verdict", "by"), rows)


def figures_behind(claims: Sequence[Claim]) -> Table:
    """A heading per claim, a row per figure, a column per L0 target."""
    targets = sorted({target for claim in claims for figure in claim.figures for target in figure.by_target})
    rows: list[tuple[str, ...]] = []
    for claim in claims:
        shown = [figure for figure in claim.figures if figure.by_target]
        rows += [(claim.claim,)] if shown else []
        rows += [(f.figure, f.verdict or "-", *(f.by_target.get(target, "-") for target in targets)) for f in shown]
    return Table(("figure", "verdict", *(f"L0 target {target}" for target in targets)), tuple(rows))


Column = tuple[str, Callable[[Evaluated], float | None]]


def main_table(every: Sequence[Evaluated]) -> Table:
    """A row per label and L0 target."""
    names = ("fvu", "l0_sd", "ce_recovered_zero", "kl_recovered_zero", "dead_fraction", "under_used_fraction")
    columns: list[Column] = [(name, of(name)) for name in names]
    columns += [(title, of_run(fact)) for title, fact in FACTS.items()]
    rows = []
    for (target, label), own in groups(every).items():
        rows.append(
            (label, str(target), _over_seeds(own, of("l0_mean")), *(_over_seeds(own, get) for _, get in columns))
        )
    return Table(("dictionary", "L0 target", "L0", *(title for title, _ in columns)), tuple(rows))


FACTS = {"training rows": "n_tokens", "CPU seconds": "cpu_seconds"}


def groups(every: Sequence[Evaluated]) -> dict[tuple[int, str], list[Evaluated]]:
    """(L0 target, label) -> its seeds."""
    found: dict[tuple[int, str], list[Evaluated]] = {}
    for e in sorted(every, key=lambda e: (e.facts["target_l0"], e.label, e.facts["seed"])):
        found.setdefault((e.facts["target_l0"], e.label), []).append(e)
    return found


def of(figure: str, less: str | None = None) -> Callable[[Evaluated], float | None]:
    """A figure, or one less another, of a dictionary."""

    def get(e: Evaluated) -> float | None:
        value, control = e.figure(figure), None if less is None else e.figure(less)
        if less is None or value is None:
            return value
        return None if control is None else value - control

    return get


def of_run(fact: str) -> Callable[[Evaluated], float | None]:
    """What result.json says of a run."""
    return lambda e: e.facts.get(fact)


def _over_seeds(own: Sequence[Evaluated], get: Callable[[Evaluated], float | None]) -> str:
    return summary(value for e in own if (value := get(e)) is not None)


ROUND_TABLES: dict[str, tuple[tuple[str, str, str | None], ...]] = {
    "Stability over seeds": (
        ("matched_cosine", "matched_cosine", None),
        ("by chance", "matched_cosine_chance", None),
        ("shared_features", "shared_features", None),
        ("by chance", "shared_features_chance", None),
        ("nearest_cosine", "nearest_cosine", None),
        ("by chance", "nearest_cosine_chance", None),
    ),
    "Interpretability": (
        ("token_purity", "token_purity", None),
        ("by chance", "token_purity_chance", None),
        ("class_purity", "class_purity", None),
        ("by chance", "class_purity_chance", None),
        ("ngram_detection (chance 0.5)", "ngram_detection", None),
        ("ngram_fuzzing (0.5)", "ngram_fuzzing", None),
        ("class_detection (0.5)", "class_detection", None),
        ("class_fuzzing (0.5)", "class_fuzzing", None),
    ),
    "Steering": (
        ("class_steering_area less random", "class_steering_area", "class_steering_area_random"),
        ("less shuffled", "class_steering_area", "class_steering_area_shuffled"),
        ("steering_area", "steering_area", None),
        ("random", "steering_area_random", None),
        ("shuffled", "steering_area_shuffled", None),
        ("logit_influence", "logit_influence", None),
        ("random", "logit_influence_random", None),
        ("perplexity_cost", "perplexity_cost", None),
        ("attribution_correlation", "attribution_correlation", None),
    ),
    "Disentangling": (
        ("probe_top1", "probe_top1", None),
        ("random", "probe_top1_random", None),
        ("tpp_10", "tpp_10", None),
        ("random", "tpp_10_random", None),
        ("scr_10", "scr_10", None),
        ("random", "scr_10_random", None),
        ("absorption", "absorption", None),
        ("random", "absorption_random", None),
        ("first_letter_f1", "first_letter_f1", None),
    ),
    "Geometry": (
        ("co_firing_cosine", "co_firing_cosine", None),
        ("if independent", "independent_cosine", None),
        ("next_atom_cosine", "next_atom_cosine", None),
        ("mean_cosine", "mean_cosine", None),
        ("coherence", "coherence", None),
        ("near_duplicates", "near_duplicates", None),
        ("encoder_decoder_cosine", "encoder_decoder_cosine", None),
    ),
}
"""Title -> columns: heading, figure, and what is taken from it."""


def round_tables(every: Sequence[Evaluated]) -> Iterator[Table]:
    """A table per round that any dictionary has, a row per label."""
    for title, columns in ROUND_TABLES.items():
        rows = []
        for (_, label), own in groups(every).items():
            cells = [_over_seeds(own, of(figure, less)) + _interval(own, figure, less) for _, figure, less in columns]
            if set(cells) != {"-"}:
                rows.append((label, _over_seeds(own, of("l0_mean")), *cells))
        if rows:
            counts = [_few(every, figure) for _, figure, _ in columns]
            told = (count if count != before else "" for before, count in pairwise(["", *counts]))
            heads = (heading + count for (heading, _, _), count in zip(columns, told, strict=True))
            yield Table((title, "L0", *heads), tuple(rows), _steering_note(every) if title == "Steering" else "")


def _interval(own: Sequence[Evaluated], figure: str, less: str | None) -> str:
    """The interval of a figure that only one of the seeds holds, as one of all of them."""
    held = [r for e in own if (r := e.record(figure)) is not None]
    if len(own) == 1 or len(held) != 1 or less is not None or held[0].spread is None:
        return ""
    return " [{:.3g}, {:.3g}]".format(*held[0].spread)


def _few(every: Sequence[Evaluated], figure: str) -> str:
    """Of how many items a figure is, where they are few: `(n 12 features)`."""
    found = {(r.n, r.n_unit) for e in every if (r := e.record(figure)) is not None}
    low, high = min(found, default=(FEW, ""))[0], max(found, default=(FEW, ""))[0]
    return "" if low >= FEW else f" (n {low if low == high else f'{low} to {high}'} {min(found)[1]})"


def _steering_note(every: Sequence[Evaluated]) -> str:
    """What the two areas tell of features."""
    found = [
        (value, random)
        for e in every
        if (value := e.figure("steering_area")) and (random := e.figure("steering_area_random"))
    ]
    beaten = sum(value < random for value, random in found)
    return (
        f"steering_area says little of features: a random direction has the greater area in {beaten} of {len(found)} "
        "dictionaries, since an atom and a random direction are each judged by the tokens that their own direct path "
        "to the logits raises. class_steering_area has a labelled class for target, the same for a feature and its "
        "controls; it is given less what random directions and other features' atoms do."
    )


def steps(every: Sequence[Evaluated]) -> Iterator[Panel]:
    """FVU over k at inference."""
    shown = [(e.name, e.measure("steps")) for e in every if e.measure("steps")]
    if not shown:
        return
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [step["k"] for step in found],
            "y": [step["fvu"] for step in found],
            "line": {"color": COLOURS[i % len(COLOURS)], "dash": ("solid", "dash", "dot")[i // len(COLOURS) % 3]},
        }
        for i, (name, found) in enumerate(shown)
    ]
    shape = layout("steps, or k, at inference", "FVU", {"type": "log", "tickvals": [8, 16, 32, 64, 128]})
    shape |= {"height": 320 + 9 * len(shown), "showlegend": True, "legend": {"orientation": "h", "y": -0.24}}
    rows = tuple((name, step["k"], step["fvu"]) for name, found in shown for step in found)
    yield Panel("FVU by steps at inference", data, shape, ("dictionary", "steps", "FVU"), rows)


def layer_panels(layers: dict[str, Any] | None) -> Iterator[Panel]:
    """Accuracy of each measure with its interval, and chance."""
    records = [r for r in (layers or {}).get("records", []) if r["name"].startswith("layer_matching_")]
    if not records:
        return
    names = [r["name"].removeprefix("layer_matching_") for r in records]
    values = [r["value"] for r in records]
    bars = {
        "type": "bar",
        "x": names,
        "y": values,
        "marker": {"color": COLOURS[0]},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [r["spread"][1] - r["value"] for r in records],
            "arrayminus": [r["value"] - r["spread"][0] for r in records],
        },
    }
    assert layers is not None
    chance = 1 / len(layers["points"])
    line = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": chance,
        "y1": chance,
        "line": {"color": COLOURS[1]},
    }
    shape = layout("", "share matched rightly", {}, {"range": [0, 1]}) | {"height": 300, "shapes": [line]}
    rows = tuple((n, v, *r["spread"]) for n, v, r in zip(names, values, records, strict=True))
    yield Panel("Layer matching", [bars], shape, ("measure", "share", "low", "high"), rows)


def markdown(sections: Sequence[Section]) -> str:
    """Texts and tables of the page."""
    lines = [f"# {TITLE}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        lines += [line for text in section.paragraphs for line in (text, "")]
        for table in section.tables:
            lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
            lines += ["| " + " | ".join(_markdown_row(row, len(table.columns))) + " |" for row in table.rows]
            lines += ["", *((table.note, "") if table.note else ())]
    return "\n".join(lines)


def _markdown_row(row: tuple[str, ...], n_columns: int) -> tuple[str, ...]:
    return row if len(row) > 1 else (f"**{row[0]}**", *[""] * (n_columns - 1))
