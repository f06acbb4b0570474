"""From a run to its features: collecting them; the page, the notebook face and the live app over them."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from saetools import pipeline
from saetools.atomic import hash_file
from saetools.errors import ConfigError, FormatError, MismatchError
from saetools.safeio import expanded

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
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Collecting:
    """How the features of a dictionary are collected where their store is missing, or of older weights."""

    fresh: bool = False  # collect again whatever is there
    map: MapMethod = "pca"  # "umap" needs the extra map
    loss_effects: int = 0  # features whose top contexts get their effect on the loss: the sample that a page shows
    elsewhere: Collection[str] = ()  # what is meant to differ from what the dictionary was made for: host, point, ...

    def __post_init__(self) -> None:
        if self.loss_effects < 0:
            raise ConfigError(f"{self.loss_effects} features are to be ablated. Give 0 or more.")

    def check_served(self, store: FeatureStore) -> None:
        """ConfigError where a store lacks what is asked for: collecting it again takes minutes, and is asked for."""
        n_firing = int((store.columns("count")["count"] > 0).sum())
        lacks = [f"--loss-effects {self.loss_effects}"] * (store.info.loss_effects < min(self.loss_effects, n_firing))
        lacks += ["--map umap"] * (self.map == "umap" and not store.info.map_note.startswith("UMAP"))
        if lacks:
            store.close()
            raise ConfigError(
                f"the features at {store.path} were collected without {' and '.join(lacks)}. Add --fresh to collect "
                "them again, or leave it out."
            )


def explore(source: Path | str | Dictionary, config: Any = None, *, elsewhere: Collection[str] = ()) -> Explorer:
    """The features of a run, a dictionary inside one, a feature store or a loaded dictionary, as panels for a notebook.

    Features that were not collected yet are collected first, which takes about a minute; those of a loaded dictionary
    for this session alone. `config`: a run, YAML file or config that names host, corpus and point of a bare or loaded
    dictionary. `elsewhere` names what of these is meant to differ from what the dictionary was made for. Raises
    FormatError where `source` is none of these, MismatchError where they do not belong together.
    """
    from saetools.dashboard.notebook import Explorer

    if isinstance(config, str | Path):
        config = pipeline.read_config(config)
    how = Collecting(elsewhere=elsewhere)
    if not isinstance(source, str | Path):
        if config is None:
            raise ConfigError("a loaded dictionary knows no text: name one by explore(dictionary, config='runs/mine').")
        folder, loaded = Path(tempfile.mkdtemp(prefix="saetools-")), source
        subject = pipeline.load_subject(loaded, config, elsewhere)
        _collect(subject, "", config, folder / STORE, how, "dictionary")
        store = _open(folder / STORE)
        weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
        model = _model(lambda: subject, config, how)
        return Explorer(
            store, None, model.fire if model else None, lambda other: _comparison(lambda: loaded, other, config, how)
        )
    source = pipeline.local_source(source)
    if (source / "features.sqlite").exists():
        return Explorer(_open(source))
    config = config or pipeline.config_of(source)
    weights = _Weights.of(source)
    store = _store_of(weights, config, how)
    model = _model(lambda: weights.subject(config, elsewhere), config, how)
    return Explorer(
        store,
        _metrics(source),
        model.fire if model else None,
        lambda other: _comparison(weights.dictionary, other, config, how),
    )


@dataclass(frozen=True)
class _Weights:
    """The dictionary that a source had when it was opened: a run that trains saves others, and removes some, meanwhile.

    Store, model and comparison of one look at a source take it from here, so that they are of the same weights.
    """

    source: Path  # as it was named: its results belong there
    directory: Path  # what of it is loaded
    hash: str  # of its manifest, which lists the weights' hash, or of another library's weights; empty: there are none

    @staticmethod
    def of(source: Path) -> _Weights:
        """Those that `load` would read now."""
        from saetools.formats.run import CHECKPOINTS, DICTIONARY, checkpoint_directories
        from saetools.safeio import verify_directory

        for directory in (source, source / DICTIONARY):
            if found := _manifest_hash(directory):
                return _Weights(source, directory, found)
        for checkpoint in checkpoint_directories(source) if (source / CHECKPOINTS).is_dir() else ():
            directory = checkpoint / DICTIONARY
            try:
                verify_directory(directory)
            except FormatError:
                continue
            return _Weights(source, directory, _manifest_hash(directory))
        return _Weights(source, source, _foreign_hash(source))

    def dictionary(self) -> Dictionary:
        """The dictionary."""
        from saetools.formats.load import load

        return self._loaded(load)

    def subject(self, config: Any, elsewhere: Collection[str]) -> Any:
        """The dictionary with the host and the held-out rows of a config."""
        return self._loaded(lambda directory: pipeline.load_subject(directory, config, elsewhere))

    def _loaded(self, load: Callable[[Path], Loaded]) -> Loaded:
        try:
            return load(self.directory)
        finally:
            if (_manifest_hash(self.directory) or _foreign_hash(self.directory)) != self.hash:
                raise MismatchError(f"{self.source} has other weights than when it was opened. Open it again.")


def open_store(source: Path | str, config: Any = None, how: Collecting | None = None) -> FeatureStore:
    """The feature store of a run or dictionary; collected where it is missing or of older weights."""
    return _store_of(_Weights.of(pipeline.local_source(source)), config, how or Collecting())


def _store_of(weights: _Weights, config: Any, how: Collecting) -> FeatureStore:
    path = pipeline.run_directory(weights.source) / STORE
    if path.exists() and not how.fresh:
        store = _open(path)
        if store.info.dictionary_hash in ("", weights.hash) or not weights.hash:
            how.check_served(store)
            _tell_of_another_number(store, config)
            return store
        store.close()
        log.info("the features at %s are of other weights than the dictionary now has: collecting them again", path)
    config = config or pipeline.config_of(weights.source)
    _collect(weights.subject(config, how.elsewhere), weights.hash, config, path, how, path.parent.name)
    return _open(path)


def _tell_of_another_number(store: FeatureStore, config: Any) -> None:
    asked, wanted = store.info.n_asked, config.evaluation.n_tokens if config is not None else None
    if asked is not None and wanted is not None and asked != wanted:
        log.warning(
            "the features at %s were collected when evaluation.n_tokens was %s; --fresh collects them over %s tokens",
            *(store.path, f"{asked:,}", f"{wanted:,}"),
        )


@pipeline.cpu_by_default()
def _collect(subject: Any, dictionary_hash: str, config: Any, path: Path, how: Collecting, title: str) -> None:
    """Read held-out rows once and write the feature store of a dictionary to `path`."""
    from saetools.features.collect import CollectSettings, collect
    from saetools.features.entries import Description, describe
    from saetools.features.places import umap_class
    from saetools.features.write import write_store

    if how.loss_effects and subject.host is None:
        raise ConfigError("rows without a host have no loss, so no feature has an effect on it. Leave them out.")
    if how.map == "umap":
        umap_class()  # before text is read for minutes, not after
    settings = CollectSettings(n_tokens=config.evaluation.n_tokens, seed=config.run.seed)
    with pipeline.rows_bar(settings.n_tokens, config.logging.progress) as tick:
        collected = collect(subject.dictionary, subject.heldout, subject.tokens, settings, tick)
    corpus = f"{config.corpus.name}, held-out documents" if subject.tokens else "held-out rows"
    wanted = Description(title, corpus, dictionary_hash, how.map, how.loss_effects)
    info, entries = describe(collected, subject.dictionary, subject.spec, subject.host, wanted)
    write_store(path, info, entries)


def export(
    source: Path | str,
    config: Any,
    target: Path | str | None = None,
    n_features: int | None = None,
    compare: Path | str | None = None,
    how: Collecting | None = None,
) -> Path:
    """Write the features of a run as a page that needs no server; returns what to open.

    `target` ending in .html (default: dashboard.html in the run): one file with a sample of `n_features` features
    (default: evaluation.n_features). Any other: a folder, by default with all features that fire.
    """
    from saetools.dashboard.curves import read_metrics, training_curves
    from saetools.dashboard.export import Contents, export_folder, export_page

    if n_features is not None and n_features < 1:
        raise ConfigError(f"{n_features} features are to be shown. Give 1 or more, or leave it out.")
    source = pipeline.local_source(source)
    target = expanded(target) if target else pipeline.run_directory(source) / "dashboard.html"
    is_page = target.suffix.lower() in (".html", ".htm")
    weights, metrics, how = _Weights.of(source), _metrics(source), how or Collecting()
    store = _store_of(weights, config, how)
    contents = Contents(
        store,
        n_features=n_features or (config.evaluation.n_features if is_page else None),
        curves=training_curves(read_metrics(metrics)) if metrics else (),
        comparison=_comparison(weights.dictionary, compare, config, how) if compare else None,
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


def live_subject(
    source: Path | str, config: Any, compare: Path | str | None = None, how: Collecting | None = None
) -> LiveSubject:
    """What the live app shows of a run: its store, its curves, its model where it has one, another run beside it.

    A run that has no dictionary and no checkpoint yet has its curves alone.
    """
    from saetools.dashboard.live.subject import Subject as LiveSubject

    source = pipeline.local_source(source)
    weights, how = _Weights.of(source), how or Collecting()
    if not weights.hash and _metrics(source):
        return LiveSubject(None, title=source.name, metrics=_metrics(source))
    model = _model(lambda: weights.subject(config, how.elsewhere), config, how)
    return LiveSubject(
        _store_of(weights, config, how),
        fire=model.fire if model else None,
        steer=model.steer if model else None,
        comparison=_comparison(weights.dictionary, compare, config, how) if compare else None,
        metrics=_metrics(source),
    )


def serve(
    source: Path | str,
    config: Any,
    compare: Path | str | None = None,
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
            f"the live app needs the extra dash ({error.name} is missing): pip install dash dash-ag-grid, or make a "
            "page with --export page.html."
        ) from error
    guard.check_address(host, token)
    token = guard.new_token() if token == "auto" else token
    app.serve(live_subject(source, config, compare, how), host, port, token, started=started)


def _model(load: Callable[[], Any], config: Any, how: Collecting) -> _Model | None:
    """What fires and steers; None for rows without a host."""
    return _Model(load, how.elsewhere) if config.activations.has_host else None


class _Model:
    """Host and dictionary, loaded when first needed; the app lets one request in at a time."""

    def __init__(self, load: Callable[[], Any], elsewhere: Collection[str]) -> None:
        self._load, self._elsewhere = load, elsewhere
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._baseline: tuple[Any, str] = (None, "")  # (what was asked for last, its continuation)

    def _subject(self) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
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
        way: Any = request.how
        with steer(
            subject.host,
            subject.dictionary,
            request.feature,
            way,
            request.strength,
            value=request.value,
            point=subject.spec.point,
            elsewhere=self._elsewhere,
        ):
            return self._baseline[1], subject.host.generate(*options, until=until)


def _comparison(ours: Callable[[], Dictionary], other: Path | str, config: Any, how: Collecting) -> Comparison:
    """The features of another run, checkpoint or dictionary matched with ours, and their store.

    Those of one that belongs to no run are collected on the text of `config`, our own.
    """
    from saetools.dashboard.comparison import Comparison
    from saetools.features.compare import match_features

    other = _dictionary_directory(pipeline.local_source(other))
    weights = _Weights.of(other)
    one, two = ours(), weights.dictionary()
    partners = match_features(one.directions().cpu(), two.directions(), one.signed or two.signed)
    try:
        theirs = pipeline.config_of(other)
    except FormatError:
        theirs = config
    store = _store_of(weights, theirs, Collecting(elsewhere=how.elsewhere))
    return Comparison(_name(other), partners.partner_F, partners.cosine_F, store, partners.how)


def _name(source: Path) -> str:
    """The run and what of it: pages that are mailed say nothing of where it lies on this machine."""
    around = (directory for directory in (source, *source.parents[:3]) if (directory / pipeline.CONFIG_FILE).exists())
    run = next(around, source)
    return str(Path(run.absolute().name, source.relative_to(run)))


def _dictionary_directory(source: Path) -> Path:
    """The dictionary of a checkpoint; anything else as it is."""
    return source / pipeline.DICTIONARY if pipeline.is_checkpoint(source) else source


def _manifest_hash(directory: Path) -> str:
    """A hash of the manifest of a dictionary of ours: it lists the weights' hash. Empty: there is none."""
    manifest = directory / "manifest.json"
    if (directory / "model.safetensors").exists() and manifest.exists():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()[:32]
    return ""


def _foreign_hash(source: Path) -> str:
    """A hash of the weights of another library's layout, which has no manifest of ours. Empty: there are none."""
    from saetools.formats.pt import WEIGHT_SUFFIXES

    folders = [folder for folder in (source, source / "checkpoints") if folder.is_dir()]
    files = [source] if source.is_file() else [file for folder in folders for file in sorted(folder.iterdir())]
    hashes = [hash_file(file) for file in files if file.suffix in WEIGHT_SUFFIXES]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:32] if hashes else ""


def _metrics(source: Path) -> Path | None:
    metrics = pipeline.run_directory(source) / METRICS
    return metrics if metrics.exists() else None


def _open(path: Path) -> FeatureStore:
    from saetools.features.store import FeatureStore

    return FeatureStore.open(path)
