"""The page, the table and the text of `evaluate_dictionaries.py`: claims first, then plots, then every figure."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from claims import all_claims
from judging import Claim, Evaluated

from saetools.atomic import write_text
from saetools.dashboard.evaluations import COLOURS, curves, scores, trade_offs
from saetools.dashboard.panel import Panel, layout
from saetools.dashboard.report import Section, Table, report_page
from saetools.evals.comparison import comparison_csv

TITLE = "Dictionaries of the embedded host"
MAIN_TARGET = 32
COLUMNS = (
    ("FVU", "fvu"),
    ("L0", "l0_mean"),
    ("L0 sd", "l0_sd"),
    ("CE recovered", "ce_recovered_zero"),
    ("KL recovered", "kl_recovered_zero"),
    ("dead", "dead_fraction"),
    ("under-used", "under_used_fraction"),
    ("co-firing cosine", "co_firing_cosine"),
    ("steering area", "steering_area"),
    ("probe top 1", "probe_top1"),
    ("TPP 10", "tpp_10"),
    ("absorption", "absorption"),
    ("fuzzing", "ngram_fuzzing"),
)


def write_report(every: Sequence[Evaluated], layers: dict[str, Any] | None, page: Path) -> None:
    """The page at `page`, and beside it a CSV of every figure and the claims as Markdown."""
    if not every:
        raise SystemExit("no dictionary is evaluated yet")
    claims = all_claims(every, layers)
    named = {e.name: e.records for e in every}
    main = {
        str(e.facts["label"]): e.records
        for e in every
        if e.facts["label"] == "top_afa" or e.facts["target_l0"] == MAIN_TARGET
        if e.facts["seed"] == 0
    }
    labels = {e.name: str(e.facts["label"]) for e in every}
    first = next(iter(e for e in every))
    facts = [
        ("host", ", ".join(sorted({e.spec["host"] for e in every}))),
        ("point", ", ".join(sorted({e.spec["point"] for e in every}))),
        ("dictionaries", str(len(every))),
        ("seeds", ", ".join(sorted({str(e.facts["seed"]) for e in every}))),
        ("training rows each", f"{max(e.facts['n_tokens'] for e in every):,}"),
        ("held-out rows", f"{next(r.n for r in first.records if r.name == 'fvu'):,}"),
    ]
    sections = [
        Section("Claims", (INTRODUCTION, *(paragraph(claim) for claim in claims)), tables=(claim_table(claims),)),
        Section("Trade-offs", (ALL_UNITS,), tuple(trade_offs(named, labels))),
        Section("All dictionaries", ("Means over held-out tokens; - where not run.",), (), (main_table(every),)),
        Section("Steps at inference", (STEPS,), tuple(steps(every))),
        Section("Scores and their floors", (FLOORS,), tuple(scores(main))),
        Section("Curves", ("L0 32, seed 0.",), tuple(curves(main))),
        Section("Layers matched between two hosts", (LAYERS,), tuple(layer_panels(layers))),
    ]
    report_page(TITLE, facts, [s for s in sections if s.panels or s.tables], page)
    write_text(page.with_suffix(".csv"), comparison_csv(named))
    write_text(page.with_suffix(".md"), markdown(claims, every))


INTRODUCTION = (
    "Each claim is judged by figures over pairs of dictionaries: same rows, same L0 target, same seed. A pair tells "
    "where its two 95 % intervals lie apart; a figure is decided where a pair tells and none points the other way, or "
    "where five pairs point one way, and undecided else (analysis/judging.py). All dictionaries share stream, learning "
    "rate, initialisation and dead-feature rule, and were trained on few tokens of a small host: what is found here is "
    "found at this scale. 'Not run' says that the comparison has not come that far (compare_dictionaries.md)."
)
ALL_UNITS = "A colour per kind; a point per L0 target and seed. 95 % intervals over held-out documents."
STEPS = "The same weights with another number of steps (or k) than they were trained with."
FLOORS = (
    "L0 32, seed 0. Filled: the dictionary, with its 95 % interval. Hollow: the same measure for random atoms, or by "
    "chance."
)
LAYERS = (
    "Share of points of either host whose most similar point of the other host is the one of the same name, with 95 % "
    "intervals over points; the line is chance. Self-pairs are left out."
)


def paragraph(claim: Claim) -> str:
    return f"**{claim.claim}** ({claim.source}) **{_first_upper(claim.verdict)}.** {claim.finding}"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def claim_table(claims: Sequence[Claim]) -> Table:
    return Table(("claim", "verdict"), tuple((claim.claim, claim.verdict.split(" (")[0]) for claim in claims))


def main_table(every: Sequence[Evaluated]) -> Table:
    """A row per dictionary."""
    rows = []
    for e in sorted(every, key=lambda e: (e.facts["target_l0"], e.facts["label"], e.facts["seed"])):
        cells = (e.figure(figure) for _, figure in COLUMNS)
        seconds = f"{e.facts['cpu_seconds']:.0f}"
        rows.append((e.name, *("-" if v is None else f"{v:.4g}" for v in cells), f"{e.facts['n_tokens']:,}", seconds))
    return Table(("dictionary", *(title for title, _ in COLUMNS), "tokens", "CPU seconds"), tuple(rows))


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


def markdown(claims: Sequence[Claim], every: Sequence[Evaluated]) -> str:
    """The claims and the main table as text."""
    table = main_table(every)
    lines = [f"# {TITLE}", "", INTRODUCTION, ""]
    for claim in claims:
        lines += [f"## {claim.claim}", "", f"{claim.source}. **{_first_upper(claim.verdict)}.** {claim.finding}", ""]
    lines += ["## Figures", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table.rows), ""])
