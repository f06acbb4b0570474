"""The table and the figure of `compare_dictionaries.py`, from whatever units are done.

    python analysis/compare_report.py runs/compare [more directories of runs]

Writes compare_dictionaries.csv (one line per unit), .md (means over seeds) and .html (a page that needs no network)
beside this file.
"""

import argparse
import csv
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from compare_dictionaries import results, units

from saetools import atomic
from saetools.dashboard.evaluations import COLOURS
from saetools.dashboard.panel import Panel, layout, plain
from saetools.dashboard.report import Section, report_page

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


def read(roots: Iterable[Path]) -> list[Result]:
    """The figures of all finished units under the roots, in a fixed order."""
    found = [result for root in roots for result in results(root)]
    return sorted(found, key=lambda r: (r["target_l0"], r["label"], r["seed"]))


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


CURVES = {
    "fvu": ("FVU", 1, {"type": "log", "tickvals": [0.05, 0.1, 0.2, 0.4, 0.8]}),
    "ce_recovered": ("CE recovered", 1, {}),
    "kl_recovered": ("KL recovered", 1, {}),
    "dead": ("Dead, % of atoms", 100, {"rangemode": "tozero"}),
    "l0_sd": ("Standard deviation of L0 over tokens", 1, {"rangemode": "tozero"}),
    "cpu_seconds": ("CPU seconds of training", 1, {"type": "log"}),
}
"""Figure -> title, factor, axis."""
SYMBOLS = ("circle", "diamond", "square")


def panels(averaged: dict[tuple[str, int], Result]) -> Iterator[Panel]:
    """Each of CURVES over mean L0, a line per dictionary; the rows that it read where the pointer rests."""
    labels = sorted({label for label, _ in averaged})
    for name, (title, factor, axis) in CURVES.items():
        data, rows = [], []
        for i, label in enumerate(labels):
            own = [row for (each, _), row in averaged.items() if each == label and row[name] is not None]
            points = sorted(own, key=lambda row: row["l0"])
            line = {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(label),
                "x": [p["l0"] for p in points],
                "y": [factor * p[name] for p in points],
                "text": [f"{p['n_tokens']:,.0f} rows, {p['seeds']} seed(s)" for p in points],
                "hovertemplate": f"{plain(label)}<br>L0 %{{x:.3g}}<br>%{{y:.4g}}<br>%{{text}}<extra></extra>",
                "line": {"color": COLOURS[i % len(COLOURS)]},
                "marker": {"symbol": SYMBOLS[i // len(COLOURS) % len(SYMBOLS)], "size": 8},
            }
            data.append(line)
            rows += [(label, round(p["l0"], 1), round(factor * p[name], 4)) for p in points]
        x = {"type": "log", "tickvals": [8, 16, 32, 64, 128, 256]}
        shape = layout("mean L0, held-out", "", x, {"rangemode": "normal", **axis})
        shape |= {"height": 340 + 10 * len(labels), "showlegend": True, "legend": {"orientation": "h", "y": -0.2}}
        yield Panel(title, data, shape, ("dictionary", "L0", title), tuple(rows))


def coverage(found: list[Result]) -> str:
    """How much of the comparison is there: units in all, and by L0 target and seed."""
    every = list(units())
    sets = [
        f"L0 {target}, seed {seed}: {done} of {sum((u.target, u.seed) == (target, seed) for u in every)}"
        for target, seed in dict.fromkeys((u.target, u.seed) for u in every)
        if (done := sum((r["target_l0"], r["seed"]) == (target, seed) for r in found))
    ]
    return f"It rests on {len(found)} of {len(every)} units so far ({'; '.join(sets)})."


def report(roots: list[Path]) -> None:
    """Write CSV, Markdown and figure."""
    found = read(roots)
    averaged = means(found)
    with (HERE / "compare_dictionaries.csv").open("w", newline="") as file:
        names = list(dict.fromkeys(name for result in found for name in result))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    rests = coverage(found)
    lines = [
        f"# Dictionaries compared, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python analysis/compare_dictionaries.py`. {rests} Embedded host, `blocks.1.hook_out`, D = 256, F = 4096, "
        "one stream of rows per seed, 300,032 rows in batches of 1024, lr 1e-3 for all: a short training, in which "
        "every kind is far from converged. Held-out: 60,000 rows, 10,000 predictions. CPU seconds of one thread beside "
        "other work. `dead` and `under-used` are shares of the atoms in use. Where `seeds` is 1, a difference may be "
        "chance: no order is claimed.",
        "",
        table(averaged),
        "",
        "The papers' claims are judged in `report.md`.",
        "",
    ]
    atomic.write_text(HERE / "compare_dictionaries.md", "\n".join(lines))
    note = (
        f"Figures over mean L0 on held-out rows, means over seeds. {rests} The numbers are in compare_dictionaries.md."
    )
    sections = [Section("All dictionaries", (note,), tuple(panels(averaged)))]
    report_page("Dictionaries on one stream", [], sections, HERE / "compare_dictionaries.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", type=Path, nargs="+")
    report(parser.parse_args().roots)


if __name__ == "__main__":
    main()
