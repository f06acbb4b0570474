"""The table, the figure and the verdicts of `compare_dictionaries.py`, from whatever units are done.

    python analysis/compare_report.py runs/compare [more directories of runs]

Writes compare_dictionaries.csv (one line per unit), .md (means over seeds, verdicts) and .html (plotly) beside this
file. A verdict compares means over the seeds and L0 targets that both sides have, and says how many these are.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saetools import atomic

HERE = Path(__file__).parent
COLUMNS = {
    "l0": "L0",
    "l0_sd": "sd of L0",
    "fvu": "FVU",
    "ce_recovered": "CE recovered",
    "kl_recovered": "KL recovered",
    "dead": "dead",
    "under_used": "under-used",
    "n_tokens": "rows",
    "cpu_seconds": "CPU s",
}
SIGNS = {"l0": 1, "l0_sd": 1, "n_tokens": 0, "cpu_seconds": 0}  # digits; others have 4
Result = dict[str, Any]


def read(roots: Iterable[Path], name: str) -> list[Result]:
    """All `name` files of units (or seeds) under the roots, in a fixed order."""
    found = [json.loads(path.read_text()) for root in roots for path in sorted(root.glob(f"seed*/{name}"))]
    return sorted(found, key=lambda r: (r.get("target_l0", 0), r.get("label", ""), r["seed"]))


def means(results: list[Result]) -> dict[tuple[str, int], Result]:
    """(label, target) -> means over seeds, with their number."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result["label"], result["target_l0"]), []).append(result)
    averaged = {}
    for key, members in groups.items():
        values = {c: [m[c] for m in members if m[c] is not None and m[c] == m[c]] for c in COLUMNS}
        averaged[key] = {c: mean(v) if v else None for c, v in values.items()} | {"seeds": len(members)}
    return averaged


def table(averaged: dict[tuple[str, int], Result]) -> str:
    """Markdown, best FVU first within each target."""
    head = ["target L0", "dictionary", *COLUMNS.values(), "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (label, target), row in sorted(averaged.items(), key=lambda item: (item[0][1], item[1]["fvu"])):
        cells = ["-" if row[c] is None else f"{row[c]:,.{SIGNS.get(c, 4)}f}" for c in COLUMNS]
        lines.append(f"| {target} | {label} | " + " | ".join(cells) + f" | {row['seeds']} |")
    return "\n".join(lines)


def figure(averaged: dict[tuple[str, int], Result]) -> go.Figure:
    """FVU, CE recovered and sd of L0 over mean L0, a line per dictionary."""
    panels = {"fvu": "FVU", "ce_recovered": "CE recovered", "l0_sd": "sd of L0 over tokens"}
    made = make_subplots(1, len(panels), subplot_titles=list(panels.values()))
    colours = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f"]
    symbols = ["circle", "diamond"]
    for i, label in enumerate(sorted({label for label, _ in averaged})):
        points = sorted((row for (name, _), row in averaged.items() if name == label), key=lambda row: row["l0"])
        for column, name in enumerate(panels, 1):
            made.add_scatter(
                x=[p["l0"] for p in points],
                y=[p[name] for p in points],
                name=label,
                legendgroup=label,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colours[i % len(colours)]},
                marker={"symbol": symbols[i // len(colours) % 2], "size": 8},
                row=1,
                col=column,
            )
    made.update_xaxes(title_text="mean L0, held-out", type="log", tickvals=[8, 16, 32, 64, 128, 256])
    made.update_yaxes(type="log", tickvals=[0.05, 0.1, 0.2, 0.4, 0.8], col=1)
    made.update_layout(template="plotly_white", width=1500, height=560, title="Dictionaries on one stream")
    return made


# --- claims -------------------------------------------------------------------------------------------------


def pairs(averaged: dict[tuple[str, int], Result], a: str, b: str) -> list[tuple[Result, Result]]:
    """The means of two labels at every target that both have."""
    targets = sorted({target for label, target in averaged if label == a})
    return [(averaged[a, t], averaged[b, t]) for t in targets if (b, t) in averaged]


def judged(
    averaged: dict[tuple[str, int], Result], claim: str, a: str, b: str, *better: tuple[str, int]
) -> tuple[str, str, str]:
    """Whether a is better than b in each of `better` (name, 1 for more or -1 for less) at every common target."""
    both = pairs(averaged, a, b)
    if not both:
        return claim, "not measured", f"needs {a} and {b}"
    texts, holds = [], []
    for name, sign in better:
        at = [f"{x[name]:.4f} against {y[name]:.4f} at L0 {x['l0']:.0f} / {y['l0']:.0f}" for x, y in both]
        texts.append(f"{COLUMNS[name]} {', '.join(at)}")
        holds += [sign * (x[name] - y[name]) > 0 for x, y in both]
    verdict = "holds here" if all(holds) else "does not hold here" if not any(holds) else "mixed"
    return claim, verdict, "; ".join(texts)


def verdicts(averaged: dict[tuple[str, int], Result], measured: list[Result]) -> list[tuple[str, str, str]]:
    """(claim, verdict, figures) of the claims that the units at hand can judge."""
    found = [
        judged(
            averaged,
            "mutual choice has fewer dead features and lower loss than topk at equal L0",
            "mutual_choice",
            "topk",
            ("dead", -1),
            ("fvu", -1),
        ),
        judged(
            averaged,
            "aux_zipf reduces under-used features",
            "feature_choice",
            "feature_choice, no aux_zipf",
            ("under_used", -1),
        ),
        judged(averaged, "gradient selection recovers more CE at equal L0", "gradient", "topk", ("ce_recovered", 1)),
        judged(
            averaged,
            "variational has more dead features and rebuilds worse",
            "variational",
            "topk",
            ("dead", 1),
            ("fvu", 1),
        ),
        judged(
            averaged,
            "its control, TopK with an L2 penalty, has more dead features and rebuilds worse",
            "variational, no noise",
            "topk",
            ("dead", 1),
            ("fvu", 1),
        ),
        judged(
            averaged,
            "ITDA from 1 % of the rows stays near topk (its CE recovered is higher)",
            "itda, 1 % of the rows",
            "topk",
            ("ce_recovered", 1),
        ),
    ]
    afa = [row for (label, _), row in averaged.items() if label == "top_afa"]
    if afa:
        found.append(
            (
                "top-AFA needs no k but is competitive only at high L0",
                "see the figure",
                f"its own L0 is {afa[0]['l0']:.0f}, FVU {afa[0]['fvu']:.4f}, CE {afa[0]['ce_recovered']:.4f}",
            )
        )
    return found + [line for describe in MEASURED for line in describe(measured)]


def _pursuit(measured: list[Result]) -> list[tuple[str, str, str]]:
    rows = [m["pursuit"] for m in measured if "pursuit" in m]
    if not rows:
        return []
    steps = {s: mean(r["fvu"][s] for r in rows) for s in rows[0]["fvu"]}
    falls = all(b < a for a, b in zip(list(steps.values()), list(steps.values())[1:], strict=False))
    next_cos, any_cos = (mean(r[name] for r in rows) for name in ("cosine_next", "cosine_random"))
    return [
        (
            "matching pursuit keeps improving with more inference steps",
            "holds here" if falls else "does not hold here",
            f"trained with {rows[0]['k']}; FVU " + ", ".join(f"{v:.4f} at {s}" for s, v in steps.items()),
        ),
        (
            "its atoms are conditionally orthogonal: less alike than chance where one follows the other",
            "holds here" if next_cos < any_cos else "does not hold here",
            f"mean absolute cosine of successive atoms {next_cos:.3f}, of random pairs of those chosen {any_cos:.3f}",
        ),
    ]


def _gradient(measured: list[Result]) -> list[tuple[str, str, str]]:
    rows = [m["gradient"] for m in measured if "gradient" in m]
    if not rows:
        return []
    with_g, without = (mean(r[name] for r in rows) for name in ("ce_with", "ce_without"))
    return [
        (
            "(ours) gradients at inference recover more CE than the same dictionary without",
            "holds here" if with_g > without else "does not hold here",
            f"{with_g:.4f} with, {without:.4f} without, {len(rows)} seed(s)",
        )
    ]


def _amortisation(measured: list[Result]) -> list[tuple[str, str, str]]:
    rows = [m["amortisation"] for m in measured if "amortisation" in m]
    if not rows:
        return []
    own, best = (mean(r[name] for r in rows) for name in ("fvu_encoder", "fvu_shrinkage"))
    l0_own, l0_best = (mean(r[name] for r in rows) for name in ("l0_encoder", "l0_shrinkage"))
    return [
        (
            "(baseline) over topk's own atoms, iterative shrinkage (CEL0) rebuilds better than topk's encoder",
            "holds here" if best < own else "does not hold here",
            f"FVU {best:.4f} at L0 {l0_best:.1f} against {own:.4f} at L0 {l0_own:.1f}: the amortisation gap",
        )
    ]


MEASURED: tuple[Callable[[list[Result]], list[tuple[str, str, str]]], ...] = (_pursuit, _gradient, _amortisation)


def report(roots: list[Path]) -> None:
    """Write CSV, Markdown and figure."""
    results, measured = read(roots, "*/result.json"), read(roots, "claims.json")
    averaged = means(results)
    with (HERE / "compare_dictionaries.csv").open("w", newline="") as file:
        names = list(dict.fromkeys(name for result in results for name in result))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)
    seeds = sorted({result["seed"] for result in results})
    lines = [
        f"# Dictionaries compared, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python analysis/compare_dictionaries.py`, {len(results)} units of 3 L0 targets and 3 seeds so far; seeds "
        f"{', '.join(map(str, seeds))}. Embedded host, `blocks.1.hook_out`, D = 256, F = 4096, one stream of rows per "
        "seed, 300,032 rows in batches of 1024, lr 1e-3 for all: a short training, in which every kind is far from "
        "converged. Held-out: 60,000 rows, 10,000 predictions. CPU seconds of one thread beside other work. `dead` and "
        "`under-used` are shares of the atoms in use. Where `seeds` is 1, a difference may be chance.",
        "",
        table(averaged),
        "",
        "## The papers' claims",
        "",
        "| claim | verdict | figures |",
        "|---|---|---|",
        *(f"| {claim} | {verdict} | {text} |" for claim, verdict, text in verdicts(averaged, measured)),
        "",
    ]
    atomic.write_text(HERE / "compare_dictionaries.md", "\n".join(lines))
    figure(averaged).write_html(HERE / "compare_dictionaries.html", include_plotlyjs="cdn", full_html=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", type=Path, nargs="+")
    report(parser.parse_args().roots)


if __name__ == "__main__":
    main()
