"""The evaluation suite over many trained dictionaries, and a page about them. Resumable; rows are added as runs appear.

    python analysis/evaluate_dictionaries.py runs/compare/seed*/*          # evaluate what is there, then the page
    python analysis/evaluate_dictionaries.py runs/compare/seed*/* --report # the page of what is evaluated

Each argument is a finished run directory, with a `result.json` that says its label, target L0 and seed
(`analysis/compare_dictionaries.py` writes it) and an `eval.json` of reconstruction, loss and sparsity; others are
passed over. What the claims ask for comes first, and whatever is there makes a page. Records go to
`OUT/<seed>-<name>/`; what is there of the same dictionary, settings and code is not computed again. All dictionaries
are judged on the same held-out rows, which the host makes once.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from judging import Evaluated
from measures import MEASURES
from report_page import MAIN_TARGET, write_report

from saetools import atomic
from saetools.activations.kept_rows import KeptRows
from saetools.config import HostConfig
from saetools.evals.base import Subject, make_evaluation
from saetools.evals.layers import LayerMatchingConfig, match_layers
from saetools.evals.references import References
from saetools.evals.run import dictionary_fingerprint, run_evaluations, sources_fingerprint
from saetools.formats.load import load
from saetools.lm.hosts import make_host
from saetools.pipeline import Data, config_of
from saetools.records import EvalRecord

ROOT = Path(__file__).parents[1]
SECOND_HOST = ROOT / "analysis" / "assets" / "pycode-b"
MEASURES_FILE = ROOT / "analysis" / "measures.py"
N_ROWS = 60_000
ROUNDS: dict[str, dict[str, dict[str, Any]]] = {
    "geometry": {"geometry": {"n_tokens": N_ROWS}},
    "steering": {"steering": {"n_predictions": 256, "n_read_tokens": N_ROWS}},
    "disentangled": {"probing": {}, "disentangling": {}, "absorption": {}},
    "interpretable": {"interpretability": {"n_tokens": N_ROWS}},
}
"""Rounds over all dictionaries, one after another; the runs' own `eval.json` has reconstruction, loss and sparsity."""
FIRST = ("topk", "gradient", "matching_pursuit", "itda", "mutual_choice")
"""Labels evaluated before others: most claims are about them."""


@dataclass(frozen=True)
class Unit:
    """A finished run."""

    directory: Path
    facts: dict[str, Any]  # result.json

    @property
    def name(self) -> str:
        return f"seed{self.facts['seed']}-{self.directory.name}"


class Suite:
    """The dictionaries of some runs, judged on one set of rows."""

    def __init__(self, units: Sequence[Unit], out: Path) -> None:
        self.units, self.out = units, atomic.make_directory(out)
        self._subject: Subject | None = None

    def evaluate(self, rounds: Sequence[str]) -> None:
        """What claims ask for, the rounds over all dictionaries, then what needs several of them."""
        self._measure()
        self._layers()
        for title in rounds:
            for unit in self.units:
                made = [make_evaluation(name, **settings) for name, settings in ROUNDS[title].items()]
                run_evaluations(self.subject(unit), made, atomic.make_directory(self.out / unit.name / title))
                print(f"{title}: {unit.name}", flush=True)
        self._stability()

    def subject(self, unit: Unit) -> Subject:
        """The unit's dictionary with the held-out data that all share."""
        dictionary = load(unit.directory)
        if self._subject is None:
            data = Data(config_of(unit.directory))
            heldout = KeptRows(data.source("heldout", dictionary.calibration))
            self._subject = Subject(
                dictionary, heldout.spec, heldout, data.host, data.plan("heldout"), references=References()
            )
        return replace(self._subject, dictionary=dictionary)

    def _measure(self) -> None:
        """What single claims ask for (measures.py), at the main L0."""
        for name, (labels, measure) in MEASURES.items():
            for unit in self.units:
                if unit.facts["label"] not in labels or unit.facts["target_l0"] != MAIN_TARGET:
                    continue
                path, subject = atomic.make_directory(self.out / unit.name) / f"{name}.json", self.subject(unit)
                of = {
                    "dictionary": dictionary_fingerprint(subject.dictionary),
                    "heldout": subject.heldout.fingerprint(),
                    "sources": sources_fingerprint(MEASURES_FILE),
                }
                if not _is_of(path, of):
                    atomic.write_json(path, {"of": of, "found": measure(subject)})
                print(f"{name}: {unit.name}", flush=True)

    def _layers(self) -> None:
        """Layer matching between the embedded host and the one of another seed."""
        if not self.units:
            return
        subject = self.subject(self.units[0])
        assert subject.host is not None and subject.tokens is not None
        second = make_host(HostConfig(name=str(SECOND_HOST)), "cpu")
        shared = set(second.points())
        points = [p for p in subject.host.points() if p in shared and p.startswith("blocks.") and p.count(".") <= 3]
        points = [p for p in points if p.split(".", 2)[2] in ("hook_out", "attn.hook_out", "mlp.hook_out")]
        config = LayerMatchingConfig(n_tokens=3_000, n_folds=3, n_read_tokens=N_ROWS)
        of = {
            "hosts": [host.spec(points[0]).model_dump() for host in (subject.host, second)],
            "tokens": subject.tokens.fingerprint(),
            "settings": config.model_dump(mode="json"),
            "sources": sources_fingerprint(),
        }
        path = self.out / "layers.json"
        if not _is_of(path, of):
            found = match_layers(subject.host, second, subject.tokens, points, config)
            records = [record.model_dump(mode="json") for record in found]
            atomic.write_json(path, {"of": of, "points": points, "records": records})
        print(f"layers: {len(points)} points", flush=True)

    def _stability(self) -> None:
        """Features shared by the seeds of one label and L0."""
        groups: dict[tuple[str, int], list[Unit]] = {}
        for unit in self.units:
            groups.setdefault((unit.facts["label"], unit.facts["target_l0"]), []).append(unit)
        for group in groups.values():
            first, *others = sorted(group, key=lambda unit: unit.facts["seed"])
            if others:
                subject = self.subject(first)
                subject = replace(subject, others={other.name: load(other.directory) for other in others})
                directory = atomic.make_directory(self.out / first.name / "stability")
                run_evaluations(subject, [make_evaluation("stability")], directory)
                print(f"stability: {first.name}", flush=True)


def _is_of(path: Path, of: dict[str, Any]) -> bool:
    """Whether a result is there and was made of the same things."""
    return path.exists() and json.loads(path.read_text()).get("of") == of


def find_units(directories: Sequence[Path]) -> list[Unit]:
    """Finished runs, the main L0 first, then by seed; of two that are alike the first one given."""
    found = [
        Unit(directory, json.loads((directory / "result.json").read_text()))
        for directory in directories
        if (directory / "result.json").exists() and (directory / "dictionary").exists()
    ]
    once = {unit.name: unit for unit in reversed(found)}
    order = {label: i for i, label in enumerate(FIRST)}

    def key(unit: Unit) -> tuple[Any, ...]:
        return unit.facts["target_l0"] != MAIN_TARGET, unit.facts["seed"], order.get(unit.facts["label"], len(order))

    return sorted(once.values(), key=key)


def records_of(unit: Unit, out: Path) -> Iterator[EvalRecord]:
    """All records of a unit's rounds, then those of the run itself."""
    for path in [*sorted((out / unit.name).glob("*/eval.json")), unit.directory / "eval.json"]:
        yield from (EvalRecord.model_validate(entry) for entry in json.loads(path.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "report")
    parser.add_argument("--page", type=Path, default=ROOT / "analysis" / "report.html")
    parser.add_argument("--rounds", nargs="*", default=list(ROUNDS), choices=ROUNDS)
    parser.add_argument("--report", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    units = find_units(arguments.runs)
    if not arguments.report:
        Suite(units, arguments.out).evaluate(arguments.rounds)
    every = [
        Evaluated(unit.facts, list(records_of(unit, arguments.out)), arguments.out / unit.name, unit.directory)
        for unit in units
    ]
    layers = arguments.out / "layers.json"
    found = json.loads(layers.read_text()) if layers.exists() else None
    write_report([evaluated for evaluated in every if evaluated.records], found, arguments.page)


if __name__ == "__main__":
    main()
