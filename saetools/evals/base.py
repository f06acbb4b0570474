"""What an evaluation is given and what it gives back. Adding an evaluation is adding one file beside this one."""

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from saetools.activations.base import RowSource
from saetools.dictionaries.base import Dictionary
from saetools.errors import ConfigError, DataError, nearest
from saetools.evals.bootstrap import N_RESAMPLES, DocumentSums, Statistic, mean_interval, too_few
from saetools.lm.base import Host
from saetools.records import EvalRecord, FrozenConfig, PointSpec
from saetools.text.packing import TokenPlan

if TYPE_CHECKING:
    from saetools.evals.references import References

Tick = Callable[[int], None]
"""Called with the number of tokens just done; progress bars and rates come from it."""


def no_tick(n_tokens: int) -> None:
    """A Tick that nobody watches."""


@dataclass(frozen=True)
class Subject:
    """A dictionary (for raw rows) with the held-out data that it is judged on.

    `host` and `tokens` are None for a dictionary trained on a bare rows file; evaluations that need them are then
    listed as skipped. `seed` decides what evaluations sample (rows, features, resamples): figures are comparable at
    equal seeds. `others` are further dictionaries of the same point, by name, that it is compared with.
    `references` keep what is the same for all dictionaries that are judged on these data.
    """

    dictionary: Dictionary
    spec: PointSpec
    heldout: RowSource
    host: Host | None = None
    tokens: TokenPlan | None = None
    seed: int = 0
    others: Mapping[str, Dictionary] = field(default_factory=dict)
    references: "References | None" = None


@dataclass(frozen=True)
class HostSubject:
    """A subject of which it is known that it has a host and tokens."""

    dictionary: Dictionary
    point: str
    host: Host
    tokens: TokenPlan


class NotApplicableError(DataError):
    """These data lack what the evaluation needs (labels, say): it is listed as skipped, with the message as reason."""


_REGISTRY: dict[str, type["Evaluation"]] = {}


def finite_record(name: str, value: float | None, unit: str, n: int, **fields: Any) -> EvalRecord:
    """An EvalRecord. What is not finite becomes None, and the note says so."""
    notes, spread, series = [fields.pop("note", None)], fields.pop("spread", None), fields.pop("series", None)
    value = None if value is None else float(value)
    if value is None and notes == [None]:
        notes.append("undefined on these data")
    if value is not None and not math.isfinite(value):
        notes.append(f"undefined on these data: it came to {value}")
        value = None
    if spread is not None and not all(map(math.isfinite, spread)):
        notes.append("an end of its interval is not finite")
        spread = None
    if series is not None:
        series = {key: [v if math.isfinite(v) else None for v in values] for key, values in series.items()}
        notes += [f"{key} is not finite everywhere" for key, values in series.items() if None in values]
    note = "; ".join(filter(None, notes)) or None
    return EvalRecord(name=name, value=value, unit=unit, n=n, spread=spread, series=series, note=note, **fields)


class Evaluation(ABC):
    """One way of judging a dictionary: a name, a frozen config, a cost, and a list of figures.

    Figures do not depend on batch size or document order (to 1e-6 relative; what is read, where that is less than all,
    is the beginning of the held-out order, which is fixed), memory does not grow with the number of tokens, and sums
    are accumulated in float64. A subclass says in its module docstring the formula and unit of each
    figure, what it costs and what it cannot tell.
    """

    name: ClassVar[str]
    needs_host: ClassVar[bool] = False
    uses_others: ClassVar[bool] = False
    """Whether `Subject.others` decide its figures: those of other evaluations are kept whatever they are."""
    cost: ClassVar[str]
    """What a run costs, in words: passes of the host, of the dictionary."""

    class Config(FrozenConfig):
        """Settings, each with its unit."""

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is None:
            return
        if name in _REGISTRY:
            raise ValueError(f"the evaluation {name!r} is already taken by {_REGISTRY[name].__qualname__}")
        _REGISTRY[name] = cls
        cls.name = name

    def __init__(self, **settings: Any) -> None:
        self.config = self.Config(**settings)

    @abstractmethod
    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        """All figures of the subject. Raises DataError where the held-out data are too few for any."""

    @property
    def n_tokens(self) -> int | None:
        """Tokens that a run reads at most, where known beforehand: the length of its progress bar."""
        return None

    def missing(self, subject: Subject) -> str | None:
        """Why this evaluation cannot be run on this subject; None where it can."""
        if self.needs_host and (subject.host is None or subject.tokens is None):
            return "needs a host and its text; this dictionary is judged on bare rows"
        return None

    def record(self, name: str, value: float | None, unit: str, n: int, **fields: Any) -> EvalRecord:
        """An EvalRecord with this evaluation's settings; see `finite_record`."""
        return finite_record(name, value, unit, n, config=self.settings(), **fields)

    def mean_record(
        self,
        name: str,
        values: Sequence[float] | np.ndarray,
        unit: str,
        n_unit: str,
        seed: int,
        *,
        series: dict[str, list[float]] | None = None,
        note: str | None = None,
    ) -> EvalRecord:
        """The record of a mean of items, undefined where there are none, with its interval over them.

        A note, where none is given, says that they are too few for an interval.
        """
        value, spread = float(np.mean(values)) if len(values) else None, mean_interval(values, seed)
        if note is None and value is not None:
            note = too_few(len(values), n_unit)
        return self.record(name, value, unit, len(values), n_unit=n_unit, spread=spread, series=series, note=note)

    def sums_record(
        self,
        name: str,
        sums: DocumentSums,
        statistic: Statistic,
        unit: str,
        seed: int,
        *,
        n: int | None = None,
        n_resamples: int = N_RESAMPLES,
        note: str | None = None,
        **fields: Any,
    ) -> EvalRecord:
        """The record of a statistic of sums over n (all) rows, with its interval over documents.

        To the note is added that they are too few for an interval.
        """
        return self.record(
            name,
            sums.value(statistic),
            unit,
            sums.n_rows if n is None else n,
            spread=sums.interval(statistic, seed, n_resamples),
            note="; ".join(filter(None, [note, sums.too_few()])) or None,
            **fields,
        )

    def settings(self) -> dict[str, Any]:
        """The config as JSON, with the evaluation's name."""
        return {"evaluation": self.name, **self.config.model_dump(mode="json")}


def with_host(subject: Subject) -> HostSubject:
    """The subject's host parts; `Evaluation.missing` has excluded subjects without them."""
    assert subject.host is not None and subject.tokens is not None, "an evaluation without needs_host asked for a host"
    return HostSubject(subject.dictionary, subject.host.canonical(subject.spec.point), subject.host, subject.tokens)


def available_evaluations() -> Mapping[str, type[Evaluation]]:
    """All evaluations by name; each file of this room registers its own."""
    import saetools.evals as room

    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def make_evaluation(name: str, **settings: Any) -> Evaluation:
    """The evaluation of this name with its config filled from `settings`; an unknown name names the nearest one."""
    return evaluation_class(name)(**settings)


def evaluation_class(name: str) -> type[Evaluation]:
    """The class of this name; ConfigError names the nearest one where there is none."""
    known = available_evaluations()
    if name not in known:
        raise ConfigError(f"unknown evaluation {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    return known[name]


__all__ = [
    "EvalRecord",
    "Evaluation",
    "HostSubject",
    "NotApplicableError",
    "Subject",
    "Tick",
    "available_evaluations",
    "finite_record",
    "make_evaluation",
    "no_tick",
    "with_host",
]
