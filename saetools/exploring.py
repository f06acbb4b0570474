"""From a run to its features: collecting them; the page, the notebook face and the live app over them."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetools import pipeline
from saetools.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from saetools.dashboard.comparison import Comparison
    from saetools.dashboard.live.subject import Steering
    from saetools.dashboard.live.subject import Subject as LiveSubject
    from saetools.dashboard.notebook import Explorer
    from saetools.dictionaries.base import Dictionary
    from saetools.features.places import MapMethod
    from saetools.features.records import PromptFirings
    from saetools.features.store import FeatureStore

log = logging.getLogger(__name__)
METRICS, STORE = "metrics.jsonl", "features"
MAX_FIRING = 2000  # features that a prompt lists
MAX_STEERING_SECONDS = 60.0


@dataclass(frozen=True)
class Collecting:
    """How the features of a dictionary are collected where their store is missing, or of older weights."""

    fresh: bool = False  # collect again whatever is there
    map: MapMethod = "pca"  # "umap" needs the extra map
    loss_effects: int = 0  # features whose top contexts get their effect on the loss: the sample that a page shows


def explore(source: Path | str | Dictionary, config: Any = None) -> Explorer:
    """The features of a run, a dictionary inside one, a feature store or a loaded dictionary, as panels for a notebook.

    Features that were not collected yet are collected first, which takes about a minute; those of a loaded dictionary
    for this session alone. `config`: a run, YAML file or config that names host, corpus and point of a bare or loaded
    dictionary. Raises FormatError where `source` is none of these.
    """
    from saetools.dashboard.notebook import Explorer

    if isinstance(config, str | Path):
        config = pipeline.read_config(config)
    if not isinstance(source, str | Path):
        if config is None:
            raise ConfigError("a loaded dictionary knows no text: name one by explore(dictionary, config='runs/mine').")
        path = Path(tempfile.mkdtemp(prefix="saetools-")) / STORE
        _collect(source, config, path, Collecting(), "dictionary")
        model, loaded = _Model(source, config) if config.activations.source != "rows" else None, source
        return Explorer(
            _open(path), None, model.fire if model else None, lambda other: _comparison(loaded, other, config)
        )
    source = pipeline.local_source(source)
    if (source / "features.sqlite").exists():
        return Explorer(_open(source))
    store = open_store(source, config)
    config = config or pipeline.config_of(source)
    model = _Model(source, config) if config.activations.source != "rows" else None
    return Explorer(
        store, _metrics(source), model.fire if model else None, lambda other: _comparison(source, other, config)
    )


def open_store(source: Path, config: Any = None, how: Collecting | None = None) -> FeatureStore:
    """The feature store of a run or dictionary; collected where it is missing or of older weights."""
    how = how or Collecting()
    path = pipeline.run_directory(source) / STORE
    if path.exists() and not how.fresh:
        store = _open(path)
        now = _dictionary_hash(source)
        if store.info.dictionary_hash in ("", now) or not now:
            return store
        store.close()
        log.info("the features at %s are of other weights than the dictionary now has: collecting them again", path)
    _collect(source, config or pipeline.config_of(source), path, how, path.parent.name)
    return _open(path)


def _collect(source: Path | Dictionary, config: Any, path: Path, how: Collecting, title: str) -> None:
    """Read held-out rows once and write the feature store of a dictionary to `path`."""
    from saetools.features.collect import CollectSettings, collect
    from saetools.features.entries import Description, describe
    from saetools.features.write import write_store

    subject = pipeline.load_subject(source, config)
    dictionary_hash = _dictionary_hash(source) if isinstance(source, Path) else ""
    settings = CollectSettings(n_tokens=config.evaluation.n_tokens, seed=config.run.seed)
    collected = collect(subject.dictionary, subject.heldout, subject.tokens, settings)
    wanted = Description(
        title=title,
        corpus=f"{config.corpus.name}, held-out documents",
        dictionary_hash=dictionary_hash,
        map=how.map,
        loss_effects=how.loss_effects,
    )
    info, entries = describe(collected, subject.dictionary, subject.spec, subject.host, wanted)
    write_store(path, info, entries)


def export(
    source: Path,
    config: Any,
    target: Path | None = None,
    n_features: int | None = None,
    compare: Path | None = None,
    how: Collecting | None = None,
) -> Path:
    """Write the features of a run as a page that needs no server; returns what to open.

    `target` ending in .html (default: dashboard.html in the run): one file with a sample of `n_features` features
    (default: evaluation.n_features). Any other: a folder, by default with all features that fire.
    """
    from saetools.dashboard.curves import read_metrics, training_curves
    from saetools.dashboard.export import Contents, export_folder, export_page

    target = target or pipeline.run_directory(source) / "dashboard.html"
    is_page = target.suffix.lower() in (".html", ".htm")
    store, metrics = open_store(source, config, how), _metrics(source)
    contents = Contents(
        store,
        n_features=n_features or (config.evaluation.n_features if is_page else None),
        curves=training_curves(read_metrics(metrics)) if metrics else (),
        comparison=_comparison(source, compare, config) if compare else None,
        seed=config.run.seed,
    )
    try:
        if is_page:
            export_page(contents, target)
            return target
        export_folder(contents, target)
        return target / "index.html"
    finally:
        store.close()


def live_subject(source: Path, config: Any, compare: Path | None = None, how: Collecting | None = None) -> LiveSubject:
    """What the live app shows of a run: its store, its curves, its model where it has one, another run beside it.

    A run that has no dictionary and no checkpoint yet has its curves alone.
    """
    from saetools.dashboard.live.subject import Subject as LiveSubject

    if not _dictionary_hash(source) and _metrics(source):
        return LiveSubject(None, title=source.name, metrics=_metrics(source))
    model = _Model(source, config) if config.activations.source != "rows" else None
    return LiveSubject(
        open_store(source, config, how),
        fire=model.fire if model else None,
        steer=model.steer if model else None,
        comparison=_comparison(source, compare, config) if compare else None,
        metrics=_metrics(source),
    )


def serve(
    source: Path,
    config: Any,
    compare: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8050,
    token: str | None = None,
    how: Collecting | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the live app of a run until interrupted; `started` is given its address. token "auto" makes one."""
    try:
        from saetools.dashboard.live import app, guard
    except ImportError as error:
        raise FormatError(
            f"the live app needs the extra dash ({error.name} is missing): pip install 'saetools[dash]', or make a "
            "page with --export page.html."
        ) from error
    guard.check_address(host, token)
    token = guard.new_token() if token == "auto" else token
    app.serve(live_subject(source, config, compare, how), host, port, token, started=started)


class _Model:
    """Host and dictionary, loaded when first needed; the app lets one request in at a time."""

    def __init__(self, source: Path | Dictionary, config: Any) -> None:
        self._source, self._config = source, config
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._baseline: tuple[Any, str] = (None, "")  # (what was asked for last, its continuation)

    def _subject(self) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = pipeline.load_subject(self._source, self._config)
            return self._loaded

    def fire(self, text: str) -> PromptFirings:
        from saetools.features.prompt import fire_on_prompt

        subject = self._subject()
        return fire_on_prompt(subject.dictionary, subject.host, subject.spec.point, text, n_features=MAX_FIRING)

    def steer(self, request: Steering) -> tuple[str, str]:
        """(baseline, steered) continuations of equal length, temperature and seed; DataError after 60 seconds."""
        from saetools.features.prompt import prompt_ids
        from saetools.features.steering import steer

        subject = self._subject()
        prompt_ids(subject.host, request.prompt)
        until = time.monotonic() + MAX_STEERING_SECONDS
        options = (request.prompt, request.n_tokens, request.temperature, request.seed)
        if self._baseline[0] != options:
            self._baseline = (options, subject.host.generate(*options, until=until))
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
            return self._baseline[1], subject.host.generate(*options, until=until)


def _comparison(source: Path | Dictionary, other: Path | str, config: Any) -> Comparison:
    """The features of another run, checkpoint or dictionary matched with ours, and their store.

    Those of one that belongs to no run are collected on the text of `config`, our own.
    """
    from saetools.dashboard.comparison import Comparison
    from saetools.features.compare import match_features
    from saetools.formats.load import load

    other = _dictionary_directory(pipeline.local_source(other))
    ours = load(source) if isinstance(source, Path) else source
    partners = match_features(ours.directions().cpu(), load(other).directions())
    try:
        theirs = pipeline.config_of(other)
    except FormatError:
        theirs = config
    store = open_store(other, theirs)
    return Comparison(_name(other), partners.partner_F, partners.cosine_F, store, partners.how)


def _name(source: Path) -> str:
    """The run and what of it: pages that are mailed say nothing of where it lies on this machine."""
    around = (directory for directory in (source, *source.parents[:3]) if (directory / pipeline.CONFIG_FILE).exists())
    run = next(around, source)
    return str(Path(run.absolute().name, source.relative_to(run)))


def _dictionary_directory(source: Path) -> Path:
    """The dictionary of a checkpoint; anything else as it is."""
    return source / pipeline.DICTIONARY if pipeline.is_checkpoint(source) else source


def _dictionary_hash(source: Path) -> str:
    """A hash of the manifest of the dictionary that `load` reads: it lists the weights' hash. Empty: there is none."""
    from saetools.formats.run import CHECKPOINTS, DICTIONARY, checkpoint_directories

    candidates = [source, source / DICTIONARY]
    if (source / CHECKPOINTS).is_dir():
        candidates += [directory / DICTIONARY for directory in checkpoint_directories(source)]
    for directory in candidates:
        manifest = directory / "manifest.json"
        if (directory / "model.safetensors").exists() and manifest.exists():
            return hashlib.sha256(manifest.read_bytes()).hexdigest()[:32]
    return ""


def _metrics(source: Path) -> Path | None:
    metrics = pipeline.run_directory(source) / METRICS
    return metrics if metrics.exists() else None


def _open(path: Path) -> FeatureStore:
    from saetools.features.store import FeatureStore

    return FeatureStore.open(path)
