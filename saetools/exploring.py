"""From a run to its features: the notebook face and the live app, put together from the rooms."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetools import pipeline
from saetools.errors import FormatError

if TYPE_CHECKING:
    from saetools.dashboard.live.subject import Comparison, Steering
    from saetools.dashboard.live.subject import Subject as LiveSubject
    from saetools.dashboard.notebook import Explorer
    from saetools.features.records import PromptFirings
    from saetools.features.store import FeatureStore

METRICS = "metrics.jsonl"


def explore(source: Path | str, config: Any = None) -> Explorer:
    """The features of a run, a dictionary inside one, or a feature store, as panels for a notebook.

    Features that were not collected yet are collected first, which takes about a minute. `config`: names host, corpus
    and point of a bare dictionary. Raises FormatError where `source` is none of these.
    """
    from saetools.dashboard.notebook import Explorer

    source = Path(source)
    if (source / "features.sqlite").exists():
        return Explorer(_open(source))
    directory = pipeline.run_directory(source)
    metrics = directory / METRICS
    return Explorer(open_store(source, config), metrics if metrics.exists() else None)


def open_store(source: Path, config: Any = None, fresh: bool = False) -> FeatureStore:
    """The feature store of a run or dictionary, made where it is missing."""
    path = pipeline.run_directory(source) / "features"
    if fresh or not path.exists():
        config = config or pipeline.config_of(source)
        pipeline.collect_features(pipeline.load_subject(source, config), config, path, path.parent.name)
    return _open(path)


def live_subject(source: Path, config: Any, compare: Path | None = None, fresh: bool = False) -> LiveSubject:
    """What the live app shows of a run: its store, its curves, its model where it has one, another run beside it."""
    from saetools.dashboard.live.subject import Subject as LiveSubject

    store = open_store(source, config, fresh)
    metrics = pipeline.run_directory(source) / METRICS
    model = _Model(source, config) if config.activations.source != "rows" else None
    return LiveSubject(
        store,
        fire=model.fire if model else None,
        steer=model.steer if model else None,
        comparison=_comparison(source, compare) if compare else None,
        metrics=metrics if metrics.exists() else None,
    )


def serve(
    source: Path,
    config: Any,
    compare: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8050,
    token: str | None = None,
    fresh: bool = False,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the live app of a run until interrupted; `started` is given its address. token "auto" makes one."""
    try:
        from saetools.dashboard.live import app, guard
    except ImportError as error:
        raise FormatError(
            f"the live app needs the extra dash ({error.name} is missing): pip install 'saetools[dash]', or make a "
            "page with --export."
        ) from error
    guard.check_address(host, token)
    token = guard.new_token() if token == "auto" else token
    app.serve(live_subject(source, config, compare, fresh), host, port, token, started=started)


class _Model:
    """Host and dictionary, loaded when first needed; the app lets one request in at a time."""

    def __init__(self, source: Path, config: Any) -> None:
        self._source, self._config = source, config
        self._lock = threading.Lock()
        self._loaded: Any = None

    def _subject(self) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = pipeline.load_subject(self._source, self._config)
            return self._loaded

    def fire(self, text: str) -> PromptFirings:
        from saetools.features.prompt import fire_on_prompt

        subject = self._subject()
        return fire_on_prompt(subject.dictionary, subject.host, subject.spec.point, text)

    def steer(self, request: Steering) -> tuple[str, str]:
        """(baseline, steered) continuations of equal length, temperature and seed."""
        from saetools.features.steering import steer

        subject = self._subject()
        options = (request.prompt, request.n_tokens, request.temperature, request.seed)
        baseline = subject.host.generate(*options)
        how: Any = request.how
        with steer(
            subject.host,
            subject.dictionary,
            request.feature,
            how,
            request.strength,
            value=request.value,
            point=subject.spec.point,
        ):
            return baseline, subject.host.generate(*options)


def _comparison(source: Path, other: Path) -> Comparison:
    """The features of another run or dictionary matched with ours; its store too, where it has one."""
    import numpy as np

    from saetools.dashboard.live.subject import Comparison
    from saetools.formats.load import load
    from saetools.functional.matching import hungarian_match

    ours, theirs = load(source).directions(), load(other).directions()
    match = hungarian_match(ours, theirs)
    partner, cosine = np.full(len(ours), -1), np.zeros(len(ours))
    partner[match.a_P.numpy()], cosine[match.a_P.numpy()] = match.b_P.numpy(), match.cosine_P.numpy()
    path = pipeline.run_directory(other) / "features"
    return Comparison(str(other), partner, cosine, _open(path) if path.exists() else None)


def _open(path: Path) -> FeatureStore:
    from saetools.features.store import FeatureStore

    return FeatureStore.open(path)
