"""Running evaluations on a dictionary: what is finished is kept, what cannot be run is said.

Each finished evaluation leaves `evaluations/<name>-<key>.json` in the output directory; the key stands for the
dictionary's weights, the held-out data, the settings, the code that makes figures and, where an evaluation compares
with other dictionaries, their weights. Started again, an evaluation whose file is there is not computed. `eval.json` is
the list of all records.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

import saetools
from saetools import atomic
from saetools.activations.base import digest
from saetools.activations.kept_rows import KeptRows
from saetools.config import EvaluationConfig
from saetools.dictionaries.base import Dictionary
from saetools.errors import ConfigError, FormatError, nearest
from saetools.evals.base import (
    EvalRecord,
    Evaluation,
    NotApplicableError,
    Subject,
    Tick,
    available_evaluations,
    evaluation_class,
    make_evaluation,
)
from saetools.evals.cost import Cost
from saetools.evals.rows import RowEvaluation, run_together
from saetools.safeio import read_json

EVAL_FILE, KEPT = "eval.json", "evaluations"
FORMULAS = ("activations", "dictionaries", "evals", "features", "functional", "kernels", "lm", "text")
"""Rooms whose code decides figures of given weights on given text."""
RECORDS = TypeAdapter(list[EvalRecord])


@dataclass(frozen=True)
class Outcome:
    """One evaluation's end: its records, where they came from, and what they cost."""

    name: str
    records: list[EvalRecord]
    status: str  # computed | kept | skipped
    cost: str | None = None


OnDone = Callable[[Outcome], None]


def default_evaluations(section: EvaluationConfig) -> list[Evaluation]:
    """The evaluations that a config names, with the sizes and settings that it gives; ConfigError for unknown names."""
    for name in (*(name for name in section.run if name != "all"), *section.settings):
        evaluation_class(name)
    names = available_evaluations() if "all" in section.run else dict.fromkeys(section.run)
    idle = [name for name in section.settings if name not in names]
    if idle:
        raise ConfigError(
            f"evaluation.settings has {', '.join(idle)}, which evaluation.run does not name ({', '.join(names)}). Add "
            "it to evaluation.run, or leave its settings out."
        )
    return [_configured(name, section) for name in names]


def _configured(name: str, section: EvaluationConfig) -> Evaluation:
    """An evaluation with the section's settings of it, and else with its sizes.

    A field `...tokens` whose default is that of section.n_tokens takes its value; one of fewer is at most that.
    """
    given, fields, sizes = section.settings.get(name, {}), evaluation_class(name).Config.model_fields, {}
    every = type(section).model_fields["n_tokens"].default
    for field in fields:
        if field.endswith("tokens"):
            own = fields[field].default
            sizes[field] = section.n_tokens if own == every else min(own, section.n_tokens)
    if name == "loss_recovered":
        sizes["n_tokens"] = section.n_ce_tokens
    where = f"evaluation.settings.{name}"
    for field in given:
        if field not in fields:
            raise ConfigError(f"unknown key {where}.{field}.{nearest(field, fields)} Known: {', '.join(fields)}.")
    try:
        return make_evaluation(name, **{**sizes, **given})
    except ValidationError as error:
        raise ConfigError(
            " ".join(f"{where}.{'.'.join(map(str, e['loc']))}: {e['msg']}; got {e['input']!r}." for e in error.errors())
        ) from None


def run_evaluations(
    subject: Subject,
    evaluations: Sequence[Evaluation],
    directory: Path | str | None = None,
    on_done: OnDone | None = None,
    fresh: bool = False,
    progress: bool = False,
) -> list[EvalRecord]:
    """All records in the order of `evaluations`, and `eval.json` in `directory` where one is given.

    Row evaluations of equal length share one pass; rows that a host made are kept for those after (kept_rows.py).
    `fresh` computes again what is there; `progress` shows a bar per pass on stderr; `on_done` is told of each
    evaluation as it ends. Where one raises, `eval.json` has those that ended before.
    """
    directory = None if directory is None else Path(directory)
    store, judged_on = _Store(directory, subject, fresh), subject.heldout.fingerprint(calibrated=False)
    if subject.host is not None and not isinstance(subject.heldout, KeptRows):
        subject = replace(subject, heldout=KeptRows(subject.heldout))
    outcomes: dict[int, Outcome] = {}

    def done(i: int, outcome: Outcome) -> None:
        outcomes[i] = outcome
        if on_done is not None:
            on_done(outcome)

    def skipped(i: int, reason: str) -> None:
        evaluation = evaluations[i]
        record = evaluation.record(evaluation.name, None, "none", 0, note=f"skipped: {reason}")
        done(i, Outcome(evaluation.name, [record], "skipped"))

    todo = []
    for i, evaluation in enumerate(evaluations):
        reason, kept = evaluation.missing(subject), store.read(evaluation)
        if reason is not None:
            skipped(i, reason)
        elif kept is not None:
            done(i, Outcome(evaluation.name, kept, "kept"))
        else:
            todo.append(i)
    try:
        for group in _passes([(i, evaluations[i]) for i in todo]):
            members = [evaluation for _, evaluation in group]
            try:
                cost, results = _run_pass(members, subject, progress)
            except NotApplicableError as error:
                for i, _ in group:
                    skipped(i, str(error))
                continue
            for (i, evaluation), found in zip(group, results, strict=True):
                found = [*found, _cost_record(evaluation, cost, [m.name for m in members])]
                settings = {**found[0].config, "seed": subject.seed}
                found = [record.model_copy(update={"heldout": judged_on, "config": settings}) for record in found]
                store.write(evaluation, found)
                done(i, Outcome(evaluation.name, found, "computed", str(cost)))
    finally:
        records = [record for i in sorted(outcomes) for record in outcomes[i].records]
        if directory is not None and (records or not evaluations):
            _write(directory / EVAL_FILE, records)
    return records


def read_records(path: Path) -> list[EvalRecord]:
    """The records of an `eval.json`. FormatError where it is missing, damaged or of another version."""
    try:
        return RECORDS.validate_python(read_json(path))
    except ValidationError as error:
        raise FormatError(
            f"{path} does not hold the figures of evaluations: {error.errors()[0]['msg']}. --fresh makes them anew."
        ) from None


def _write(path: Path, records: Sequence[EvalRecord]) -> None:
    """Strict JSON: `Evaluation.record` has left out what is not finite."""
    values = [record.model_dump(mode="json") for record in records]
    atomic.write_text(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def dictionary_fingerprint(dictionary: Dictionary) -> str:
    """32 hex digits of kind, config and all weights: equal fingerprints, equal codes."""
    hashed = hashlib.sha256(json.dumps(dictionary.config.model_dump(mode="json"), sort_keys=True).encode())
    for name, tensor in sorted(dictionary.state_dict().items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:32]


@cache
def sources_fingerprint(*further: Path) -> str:
    """32 hex digits of the code of the rooms that make figures, and of `further` files; read once per process."""
    package = Path(saetools.__file__).parent
    paths = [path for room in FORMULAS for path in sorted((package / room).rglob("*.py"))]
    return digest([[path.name, atomic.hash_file(path)] for path in [*package.glob("rng.py"), *paths, *further]])


def _files_of(*kinds: type) -> tuple[Path, ...] | None:
    """The files outside the package that these evaluations and dictionaries are made in, and those they derive from.

    None where one is made in none (a notebook): its code cannot be told from what it was.
    """
    package, found = Path(saetools.__file__).parent, set()
    for part in {part for kind in kinds for part in kind.__mro__ if issubclass(part, (Evaluation, Dictionary))}:
        file = getattr(sys.modules.get(part.__module__), "__file__", None)
        if file is None:
            return None
        found.add(Path(file).resolve())
    return tuple(sorted(path for path in found if not path.is_relative_to(package.resolve())))


class _Store:
    """Records of finished evaluations on disk; forgets everything without a directory."""

    def __init__(self, directory: Path | None, subject: Subject, fresh: bool) -> None:
        self.fresh = fresh
        self.directory = None if directory is None else atomic.make_directory(directory / KEPT)
        self.identity: dict[str, Any] = {}
        self.subject = subject
        if directory is not None:
            self.identity = {
                "dictionary": dictionary_fingerprint(subject.dictionary),
                "heldout": subject.heldout.fingerprint(),
                "median_norm": subject.heldout.calibration.median_norm,  # the unit of doses, outliers dropped or not
                "seed": subject.seed,
                "version": saetools.__version__,
            }

    @cached_property
    def others(self) -> dict[str, str]:
        """The weights of the other dictionaries, made for evaluations that compare alone."""
        return {name: dictionary_fingerprint(other) for name, other in self.subject.others.items()}

    def path(self, evaluation: Evaluation) -> Path | None:
        files = _files_of(type(evaluation), type(self.subject.dictionary))
        if self.directory is None or files is None:
            return None
        sources = {"sources": sources_fingerprint(*files)}
        others = {"others": self.others} if evaluation.uses_others else {}
        key = digest({**self.identity, **sources, **others, **evaluation.settings()})[:16]
        return self.directory / f"{evaluation.name}-{key}.json"

    def read(self, evaluation: Evaluation) -> list[EvalRecord] | None:
        path = self.path(evaluation)
        return None if path is None or self.fresh or not path.exists() else read_records(path)

    def write(self, evaluation: Evaluation, records: list[EvalRecord]) -> None:
        path = self.path(evaluation)
        if path is not None:
            _write(path, records)


def _passes(todo: list[tuple[int, Evaluation]]) -> Iterator[list[tuple[int, Evaluation]]]:
    """What runs together: row evaluations of equal length share a pass, every other has its own."""
    groups: dict[Any, list[tuple[int, Evaluation]]] = {}
    for i, evaluation in todo:
        key = ("rows", evaluation.config.n_tokens) if isinstance(evaluation, RowEvaluation) else i
        groups.setdefault(key, []).append((i, evaluation))
    yield from groups.values()


def _run_pass(members: Sequence[Evaluation], subject: Subject, progress: bool) -> tuple[Cost, list[list[EvalRecord]]]:
    with Cost() as cost, _bar(members, progress, cost) as tick:
        rows = [member for member in members if isinstance(member, RowEvaluation)]
        results = run_together(rows, subject, tick) if rows else [members[0].run(subject, tick)]
    return cost, results


@contextmanager
def _bar(members: Sequence[Evaluation], progress: bool, cost: Cost) -> Iterator[Tick]:
    """A Tick that counts into `cost` and moves a bar, where one is wanted."""
    title = " + ".join(member.name for member in members)
    with tqdm(
        total=members[0].n_tokens, desc=title, unit="token", unit_scale=True, disable=None if progress else True
    ) as bar:

        def tick(n_tokens: int) -> None:
            cost.tick(n_tokens)
            bar.update(n_tokens)

        yield tick


def _cost_record(evaluation: Evaluation, cost: Cost, together: list[str]) -> EvalRecord:
    shared = f"; one pass for {', '.join(together)}" if len(together) > 1 else ""
    return evaluation.record(f"cost_{evaluation.name}", cost.seconds, "seconds", cost.n_tokens, note=f"{cost}{shared}")
