"""Every dictionary on one stream of activations per seed: train, evaluate, compare. Resumable, one unit at a time.

    python analysis/compare_dictionaries.py            # what is not done yet; --labels, --seeds, --targets choose
    python analysis/compare_report.py runs/compare     # the table and the figure of what there is
    python analysis/evaluate_dictionaries.py runs/compare/seed*/*   # the whole suite, and the papers' claims judged

A unit is one dictionary at one target L0 and seed; its figures are in `<unit>/result.json` once it is done, and what
was killed half-way goes on from its checkpoint. Several processes may work on one directory. Units are done in the
order of `units`: seed 0 at L0 32 first, so that whatever there is makes a table.

All share host, point, rows, order, batch, learning rate, initialisation, dead-feature rule and held-out text. Kinds
with a k have it set to the target. Those with a penalty instead get a weight from log L0 over log weight of the runs
there are, begun with up to four short ones of as many steps; they are plotted at the L0 that they have. Top-AFA is run
once per seed.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from saetools import atomic
from saetools.activations.kept_rows import KeptRows
from saetools.evals.base import Subject, make_evaluation
from saetools.evals.references import References
from saetools.evals.run import run_evaluations
from saetools.formats.load import load
from saetools.pipeline import Data, config_of, harvest, read_config, rows_needed, train

ROOT = Path(__file__).parents[1]
POINT = "blocks.1.hook_out"
N_TOKENS, BATCH_ROWS = 300_000, 1024
PROBE_TOKENS, PROBE_ROWS, MAX_PROBES, NEAR = 75_000, 256, 4, 1.25
"""A penalty's weight is searched by runs of the same number of steps, until L0 is the target times 1.25 or less."""
N_HELDOUT, N_CE = 60_000, 10_000
TARGETS, SEEDS = (32, 16, 64), (0, 1, 2)
PENALTIES = {"relu_l1": "l1_weight", "p_anneal": "l1_weight", "jumprelu": "l0_weight", "gated": "l1_weight"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {}),
    "mutual_choice": ("mutual_choice", {}),
    "feature_choice": ("feature_choice", {}),
    "feature_choice, no aux_zipf": ("feature_choice", {"aux_weight": 0}),
    "gradient": ("gradient", {}),
    "matching_pursuit": ("matching_pursuit", {}),
    "itda": ("itda", {}),
    "itda, 1 % of the rows": ("itda", {}),
    "variational": ("variational", {}),
    "variational, no noise": ("variational", {"sample": "none"}),
    "variational, as released": ("variational", {"sample": "none", "beta": 1.0}),
    "top_afa": ("top_afa", {}),
    "matryoshka": ("matryoshka", {}),
    "abs_topk": ("abs_topk", {}),
    "relu_l1": ("relu_l1", {}),
    "jumprelu": ("jumprelu", {}),
    "gated": ("gated", {}),
    "p_anneal": ("p_anneal", {}),
}
"""Label -> kind and what differs from its config in `configs/`."""
ROWS = {"itda, 1 % of the rows": N_TOKENS // 100}
"""Labels that are trained on other than N_TOKENS rows."""
RIVALS = (("topk", 240),)
"""At about the L0 that top_afa settles at here, so that it has a rival."""


@dataclass(frozen=True)
class Unit:
    """One dictionary at one L0 and seed."""

    label: str
    target: int
    seed: int

    @property
    def kind(self) -> str:
        return VARIANTS[self.label][0]

    @property
    def penalty(self) -> str | None:
        return PENALTIES.get(self.kind)

    def directory(self, runs: Path) -> Path:
        name = self.label.replace(", ", "-").replace(" ", "_")
        return runs / f"seed{self.seed}" / f"{name}-l0_{self.target}"


def units(seeds: tuple[int, ...] = SEEDS, targets: tuple[int, ...] = TARGETS) -> Iterator[Unit]:
    """All units, the most telling first."""
    for seed in seeds:
        for target in targets:
            for label in VARIANTS:
                if label != "top_afa" or target == TARGETS[0]:
                    yield Unit(label, target, seed)
        yield from (Unit(label, target, seed) for label, target in RIVALS)


def unit_config(
    unit: Unit, runs: Path, directory: Path, n_tokens: int, settings: dict[str, Any], batch_rows: int = BATCH_ROWS
) -> Any:
    """The run of a unit: its kind's own config under what all of them share."""
    given = {
        "activations.source": "cached",
        "activations.path": runs / f"seed{unit.seed}" / "store" / POINT,
        "activations.point": POINT,
        "training.n_tokens": n_tokens,
        "training.batch_rows": batch_rows,
        "training.lr": 1e-3,
        "training.checkpoint_every_tokens": N_TOKENS // 2,
        "run.dir": directory,
        "run.seed": unit.seed,
        "run.threads": 1,
        "run.device": "cpu",
        "logging.progress": "false",
        **{f"dictionary.{name}": value for name, value in settings.items()},
    }
    flat = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return read_config(ROOT / "configs" / f"{unit.kind}.yaml", flat)


class Comparison:
    """The units in a directory of runs."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._heldout: dict[int, tuple[Data, KeptRows, References]] = {}

    def do(self, unit: Unit) -> None:
        """Train and evaluate one unit."""
        directory = unit.directory(self.runs)
        settings = dict(VARIANTS[unit.label][1])
        if unit.penalty is not None:
            begun = (directory / "config.yaml").exists()
            with FileLock(atomic.make_directory(self.runs / "probes") / f".{unit.label}.lock"):
                settings[unit.penalty] = (
                    getattr(config_of(directory).dictionary, unit.penalty) if begun else self._weight(unit)
                )
        elif unit.kind != "top_afa":
            settings["k"] = unit.target
        self._store(unit_config(unit, self.runs, directory, N_TOKENS, settings))
        config = unit_config(unit, self.runs, directory, ROWS.get(unit.label, N_TOKENS), settings)
        seconds = _train(config)
        figures = self._evaluate(directory, config)
        facts = {"label": unit.label, "kind": unit.kind, "target_l0": unit.target, "seed": unit.seed}
        weight = {} if unit.penalty is None else {"penalty": unit.penalty, "weight": settings[unit.penalty]}
        atomic.write_json(directory / "result.json", facts | weight | seconds | figures)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)

    def _store(self, config: Any) -> None:
        """The rows of this seed: harvested once, read by every unit of the seed."""
        path = config.activations.path
        with FileLock(atomic.make_directory(path.parent) / "harvest.lock"):
            live = config.activations.model_copy(update={"source": "live", "path": None, "gradients": True})
            harvest(config.model_copy(update={"activations": live}), path.parent, [POINT], rows_needed(config))

    def _weight(self, unit: Unit) -> float:
        """The penalty's weight at which this kind is expected to have the target L0: a secant in logarithms."""
        assert unit.penalty is not None
        known = [(r["weight"], r["l0"]) for r in results(self.runs) if r["label"] == unit.label]
        known += [(r["weight"], r["l0"]) for r in _read(self.runs.glob(f"probes/{unit.label}-*.json"))]
        for _ in range(MAX_PROBES):
            if any(abs(math.log(max(l0, 0.1) / unit.target)) < math.log(NEAR) for _, l0 in known):
                break
            probe = self._probe(unit, next_weight(known, unit.target, self._default_weight(unit)))
            known.append((probe["weight"], probe["l0"]))
        return next_weight(known, unit.target, 0)

    def _default_weight(self, unit: Unit) -> float:
        assert unit.penalty is not None
        return getattr(read_config(ROOT / "configs" / f"{unit.kind}.yaml", ["--run.dir", "x"]).dictionary, unit.penalty)

    def _probe(self, unit: Unit, weight: float) -> dict[str, Any]:
        """A short run: the mean L0 of its last steps."""
        assert unit.penalty is not None
        directory = self.runs / "probes" / f"{unit.label}-{weight:.4g}"
        config = unit_config(unit, self.runs, directory, PROBE_TOKENS, {unit.penalty: weight}, PROBE_ROWS)
        self._store(unit_config(unit, self.runs, directory, N_TOKENS, {}))
        _train(config)
        steps = [json.loads(line)["l0"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
        found = {"weight": weight, "l0": sum(steps[-3:]) / len(steps[-3:])}
        shutil.rmtree(directory)
        atomic.write_json(directory.with_suffix(directory.suffix + ".json"), found)
        return found

    def _evaluate(self, directory: Path, config: Any) -> dict[str, Any]:
        """Held-out figures of a finished run; its `eval.json` has all of them."""
        dictionary = load(directory)
        if config.run.seed not in self._heldout:
            data = Data(config)
            heldout = KeptRows(data.source("heldout", dictionary.calibration))
            self._heldout = {config.run.seed: (data, heldout, References())}
        data, heldout, references = self._heldout[config.run.seed]
        subject = Subject(dictionary, heldout.spec, heldout, data.host, data.plan("heldout"), references=references)
        evaluations = [
            make_evaluation("reconstruction", n_tokens=N_HELDOUT),
            make_evaluation("sparsity", n_tokens=N_HELDOUT),
            make_evaluation("loss_recovered", n_tokens=N_CE, n_read_tokens=N_HELDOUT, n_mean_tokens=N_HELDOUT),
        ]
        found = {record.name: record.value for record in run_evaluations(subject, evaluations, directory)}
        return {short: found[name] for short, name in FIGURES.items()} | _usage(dictionary)


FIGURES = {
    "fvu": "fvu",
    "l0": "l0_mean",
    "l0_sd": "l0_sd",
    "ce_recovered": "ce_recovered_zero",
    "kl_recovered": "kl_recovered_zero",
    "dead": "dead_fraction",
    "rare": "rare_fraction",
    "under_used": "under_used_fraction",
}


def _train(config: Any) -> dict[str, float]:
    """Train; CPU and wall seconds of this process, which are those of the run where it was not interrupted."""
    begun = (config.run.dir / "config.yaml").exists()
    wall, cpu = time.perf_counter(), time.process_time()
    train([config])
    spent = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    return dict.fromkeys(spent, math.nan) if begun else spent


def _usage(dictionary: Any) -> dict[str, Any]:
    """Rows that the run read (fewer than asked for where construction ended) and how many atoms are in use."""
    n_atoms = int(dictionary.in_use_F().sum())
    return {"n_tokens": dictionary.provenance["n_tokens"], "n_atoms": n_atoms}


def next_weight(known: list[tuple[float, float]], target: float, default: float) -> float:
    """The weight for a target L0: slope -1 in logarithms through one point, else through the two nearest in L0."""
    if not known:
        return default
    points = sorted(
        ((math.log(w), math.log(max(l0, 0.1))) for w, l0 in known), key=lambda p: abs(p[1] - math.log(target))
    )
    (u, v), slope = points[0], -1.0
    if other := next((p for p in points[1:] if abs(p[0] - u) > 0.01), None):
        slope = min(-0.3, max(-6.0, (other[1] - v) / (other[0] - u)))
    return float(f"{math.exp(u + (math.log(target) - v) / slope):.4g}")


def results(runs: Path) -> list[dict[str, Any]]:
    """The figures of every finished unit."""
    return _read(runs.glob("seed*/*/result.json"))


def _read(paths: Iterator[Path]) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(paths)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "compare")
    parser.add_argument("--labels", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no further unit is begun after so many")
    a = parser.parse_args()
    comparison, began = Comparison(a.runs.absolute()), time.monotonic()
    for unit in units(tuple(a.seeds), tuple(a.targets)):
        directory = unit.directory(comparison.runs)
        if unit.label not in a.labels or (directory / "result.json").exists():
            continue
        if time.monotonic() - began > 60 * a.minutes:
            break
        try:
            with FileLock(atomic.make_directory(directory.parent) / f".{directory.name}.lock", timeout=0):
                comparison.do(unit)
        except Timeout:
            continue  # another process has it
        print(time.strftime("%H:%M:%S"), unit, flush=True)


if __name__ == "__main__":
    main()
