"""Which kinds find planted atoms: every kind on rows with known truth, in six settings, as a CSV and a page.

    python analysis/planted_recovery.py [--seeds 0 1 2] [--settings easy tree] [--kinds topk itda]

Resumable: what stands in the CSV is not done again.

All kinds have twice as many features as there are atoms (itda: four times), the same rows, steps and learning rate;
kinds with a k have the mean number of atoms that fire, rounded; penalties are those of `PENALTIES`. Score: share of
planted atoms whose partner in a one-to-one (Hungarian) matching by cosine has a cosine above 0.9; for kinds with
signed codes, of either sign.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch

from saetools import atomic
from saetools.activations.planted import Planted, PlantedConfig, PlantedSource, Truth
from saetools.activations.planted_tree import PlantedTree, TreeConfig
from saetools.dictionaries.base import available_dictionaries
from saetools.functional.matching import hungarian_match
from saetools.functional.statistics import l0_N
from saetools.training.construction import make_trainer
from saetools.training.schedule import Plan

N_STEPS, BATCH_ROWS, LR = 800, 256, 1e-2
COMMON = {"d_model": 32, "n_features": 64, "mean_active": 3.0, "coefficient_low": 1.0, "coefficient_high": 2.0}
SETTINGS: dict[str, tuple[type, Any]] = {
    "easy": (Planted, PlantedConfig(**COMMON, zipf_exponent=0)),
    # one atom in 77 % of the rows that are not empty
    "single": (Planted, PlantedConfig(**COMMON | {"mean_active": 0.5}, zipf_exponent=0)),
    "zipf": (Planted, PlantedConfig(**COMMON, zipf_exponent=1)),
    "correlated": (Planted, PlantedConfig(**COMMON, zipf_exponent=0, group_size=4, correlation=0.8)),
    "hierarchy": (Planted, PlantedConfig(**COMMON | {"mean_active": 8.0}, zipf_exponent=0, children_per_parent=3)),
    "tree": (PlantedTree, TreeConfig(mix_parents=0.2, mix_children=0.3)),
}
PENALTIES: dict[str, dict[str, Any]] = {
    "relu_l1": {"l1_weight": 0.2},
    "p_anneal": {"l1_weight": 0.2},
    "gated": {"l1_weight": 0.2},
    "jumprelu": {"l0_weight": 0.02, "bandwidth": 0.03, "first_threshold": 0.03},
    "variational": {"sample": "fixed", "sigma": 0.1},
    "itda": {"min_cosine": 0.9},
    "matryoshka": {"group_fractions": (0.25, 0.25, 0.5)},
}
PAGE = """# Planted atoms recovered

`python analysis/planted_recovery.py`: mean share of the planted atoms with a partner of cosine above 0.9, and in
parentheses how many seeds it is the mean of. How each setting is made stands in the script; where - stands it was not
run. Kinds with a k have the mean number of atoms that fire, rounded: 1 in the tree, where a parent and its child fire
together. FVU and L0 of each run are in `planted_recovery.csv`.

"""


def score(kind: str, truth: Truth, seed: int) -> dict[str, float]:
    """Train one kind on one law; the share of atoms found, the FVU and L0 on held-out rows."""
    source, cls = PlantedSource(truth, batch_rows=BATCH_ROWS), available_dictionaries()[kind]
    active = source.planted.block(0, 4096, "count").code_NF.count_nonzero(1).float().mean().item()
    atoms = truth.atoms_FD
    settings = dict(PENALTIES.get(kind, {})) | {"n_features": (4 if kind == "itda" else 2) * len(atoms)}
    if "k" in cls.Config.model_fields:
        settings["k"] = max(1, round(active))
    dictionary = cls(cls.configure(**settings), truth.config.d_model, seed)
    dictionary.calibrate_(source.calibration)
    plan = Plan(
        n_tokens=N_STEPS * BATCH_ROWS,
        n_steps=N_STEPS,
        batch_rows=BATCH_ROWS,
        peak_lr=LR,
        warmup_steps=50,
        decay_fraction=0.3,
        clip_norm=1.0,
        dead_after_tokens=20 * BATCH_ROWS,
    )
    trainer = make_trainer(dictionary, plan, source.calibration, "plain")
    stream = source.batches()
    while not trainer.finished:
        for _ in trainer.consume(next(stream)[1]):
            pass
    dictionary.absorb_(trainer.state.dictionary)
    x = torch.cat([rows.x_ND for _, rows in PlantedSource(truth, "heldout", 8).batches()]) * source.calibration.scale
    with torch.no_grad():
        code = dictionary.encode(x)
        fvu = (x - dictionary.decode(code)).square().sum() / (x - x.mean(0)).square().sum()
        matched = hungarian_match(atoms, dictionary.directions(), dictionary.signed).cosine_P
    return {
        "recovered": float((matched > 0.9).float().mean()),
        "fvu": float(fvu),
        "l0": float(l0_N(code).float().mean()),
        "active": active,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", help="all where left out")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    kinds = [k.kind for k in dict.fromkeys(available_dictionaries().values()) if k.trained_by != "nothing"]
    done = list(csv.DictReader(a.out.open())) if a.out.exists() else []
    have = {(row["kind"], row["setting"], int(row["seed"])) for row in done}
    fields = ["kind", "setting", "seed", "recovered", "fvu", "l0", "active"]
    with a.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if not done:
            writer.writeheader()
        for seed in a.seeds:
            for setting in a.settings:
                law, config = SETTINGS[setting]
                for kind in a.kinds or kinds:
                    if (kind, setting, seed) not in have:
                        found = {name: f"{value:.4f}" for name, value in score(kind, law(config, seed), seed).items()}
                        writer.writerow({"kind": kind, "setting": setting, "seed": seed} | found)
                        file.flush()
    atomic.write_text(a.out.with_suffix(".md"), PAGE + table(a.out) + "\n")


def table(path: Path) -> str:
    """Markdown: kind x setting, mean share of atoms recovered over the seeds."""
    rows = list(csv.DictReader(path.open()))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lines = ["| kind | " + " | ".join(SETTINGS) + " |", "|---|" + "---|" * len(SETTINGS)]
    for kind in kinds:
        cells = []
        for setting in SETTINGS:
            values = [float(r["recovered"]) for r in rows if (r["kind"], r["setting"]) == (kind, setting)]
            cells.append(f"{sum(values) / len(values):.2f} ({len(values)})" if values else "-")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
