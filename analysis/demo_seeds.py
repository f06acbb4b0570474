"""The demo on several seeds: figures and rates as a table and CSV. Resumable: a finished run is not done again.

python analysis/demo_seeds.py --seeds 0 1 2
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIGURES = ("fvu", "l0_mean", "ce_recovered_zero", "ce_recovered_mean", "kl_recovered_zero", "dead_fraction")


def figures(run: Path) -> dict[str, float]:
    """The main figures of a run's eval.json, and its training rate with the host's share."""
    records = {record["name"]: record for record in json.loads((run / "eval.json").read_text())}
    found = {name: records[name]["value"] for name in FIGURES}
    timing = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    rates = sorted(line["tokens_per_second"] for line in timing)
    return found | {"n_dead_tokens": records["dead_fraction"]["n"], "median_tokens_per_second": rates[len(rates) // 2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, default=ROOT / "analysis" / "demo_seeds.csv")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        run = arguments.runs / f"demo-seed{seed}"
        command = [sys.executable, "-m", "saetools.cli", "quickstart", "--run.dir", str(run), "--run.seed", str(seed)]
        subprocess.run([*command, "--logging.progress", "false"], check=True, cwd=ROOT)
        rows.append({"seed": seed} | figures(run))
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
