"""The jobs of the toolkit, composed from the rooms: what the command line calls, and notebooks may.

Heavy imports (torch, transformer-lens) happen inside the functions that need them, so that a config error or a run on
stored rows never waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetools.arguments import parse_run
from saetools.errors import ConfigError, FormatError, nearest
from saetools.records import Calibration, FrozenModel
from saetools.safeio import expanded

if TYPE_CHECKING:
    from saetools.activations.base import RowSource
    from saetools.dictionaries.base import Dictionary
    from saetools.evals.base import Subject
    from saetools.lm.base import Host
    from saetools.text.base import Corpus, Split
    from saetools.text.packing import TokenPlan
    from saetools.training.run import TrainResult

CONFIG_FILE = "config.yaml"
DICTIONARY, WEIGHTS, MANIFEST = "dictionary", "model.safetensors", "manifest.json"
"""Names as formats/ has them, which imports torch."""
KEPT = Path("runs/hub")
"""Where copies of dictionaries on the hub stand, with the results on them."""


def dictionary_configs() -> dict[str, type[FrozenModel]]:
    """Config class of each kind of dictionary, aliases included."""
    from saetools.dictionaries.base import available_dictionaries

    return {name: kind.Config for name, kind in available_dictionaries().items()}


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name without `.yaml`."""
    directory = Path(str(resources.files("saetools") / "configs"))
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}


def read_config(source: Path | str, overrides: Sequence[str] = ()) -> Any:
    """The RunConfig of a YAML file, of a run directory, or of a shipped config by name, under overrides.

    That of a run directory has run.dir where the run is now: it may have been moved since.
    """
    path = expanded(source)
    if path.is_dir():
        overrides, path = [f"--run.dir={path}", *overrides], path / CONFIG_FILE
        if not path.exists():
            raise ConfigError(f"{source} is not a run directory: it has no {CONFIG_FILE}. Give a YAML file or a run.")
    elif not path.exists():
        shipped = shipped_configs()
        if str(source) not in shipped:
            raise ConfigError(
                f"there is no config {source}: neither a file, nor a run directory, nor a shipped config."
                f"{nearest(str(source), shipped)} Shipped: {', '.join(shipped)}."
            )
        path = shipped[str(source)]
    return parse_run(path, overrides, dictionary_configs())


class Data:
    """What a config reads: its host, token plans and rows, each made when first asked for."""

    def __init__(self, config: Any) -> None:
        from saetools.training.environment import dictionary_device, resolve_device

        self.config = config
        self.device = resolve_device(config.run.device)
        self.dictionary_device = dictionary_device(self.device)

    @property
    def has_host(self) -> bool:
        """Whether rows come from a model."""
        return bool(self.config.activations.has_host)

    @cached_property
    def host(self) -> Host:
        """The subject model, loaded when first asked for."""
        from saetools.lm.hosts import make_host

        return make_host(self.config.host, str(self.device))

    @cached_property
    def corpus(self) -> Corpus:
        """The text."""
        from saetools.text.corpora import make_corpus

        return make_corpus(self.config.corpus)

    def plan(self, split: Split) -> TokenPlan:
        """The fixed plan of host batches of one split."""
        from saetools.text.packing import TokenPlan

        config = self.config
        return TokenPlan(
            self.corpus,
            self.host.tokenize,
            split,
            config.corpus.context_tokens,
            config.activations.host_batch,
            config.run.seed,
            self.host.prepend_bos,
            config.corpus.max_documents,
        )

    def source(self, split: Split, calibration: Calibration | None = None) -> RowSource:
        """Rows of one split. Held-out rows of a store's run come from the host: a store holds training rows.

        They come without gradients, since whoever uses a dictionary has none.
        """
        from saetools.activations.sources import make_source

        activations = self.config.activations
        if split == "heldout":
            source = "live" if activations.source == "cached" else activations.source
            activations = activations.model_copy(update={"source": source, "gradients": False})
        live = activations.source == "live"
        return make_source(
            activations,
            split,
            self.host if live else None,
            self.plan(split) if live else None,
            calibration,
            self.config.planted,
        )


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """What says nothing of its device lies on the CPU, where sums are kept, whatever a notebook set for its models."""
    import torch

    if torch.get_default_device().type == "cpu":  # where one is set, every operation takes a little longer
        yield
        return
    with torch.device("cpu"):
        yield


@cpu_by_default()
def train(configs: Sequence[Any], allow_inexact: bool = False) -> list[TrainResult]:
    """Train one dictionary per config, several of them on one stream; a run that was begun goes on."""
    from saetools.training.loop import train as train_runs

    for config in configs:
        _check_evaluations(config)
    data = Data(configs[0])
    if configs[0].activations.source == "cached":
        _check_store(configs, data)
    return train_runs(configs, lambda calibration: data.source("train", calibration), allow_inexact)


def _check_evaluations(config: Any) -> None:
    """Refuse evaluations and settings that do not exist before hours of training, not after; imports take 3 s."""
    if config.evaluation.run != type(config.evaluation)().run or config.evaluation.settings:
        from saetools.evals.run import default_evaluations

        default_evaluations(config.evaluation)


def rows_needed(config: Any) -> int:
    """Rows of the source that a run reads: whole batches, and the shuffle ring ahead of them."""
    from saetools.activations.shuffle import rows_read
    from saetools.training.schedule import make_plan

    plan = make_plan(config.training, config.dictionary.n_features)
    return rows_read(plan.n_steps * plan.batch_rows, config.activations.ring_rows)


def _check_store(configs: Sequence[Any], data: Data) -> None:
    """Refuse a store of another point or host, or too short a one, before anything is trained.

    The host is loaded only where it has another name, under which the same weights may lie.
    """
    from saetools.activations.store import CachedSource

    data.source("train")  # checks all but these: a store of another point is not to be harvested longer
    store = CachedSource(configs[0].activations.path)
    if store.spec.host != configs[0].host.name:
        store.check_host(data.host, store.spec.point)
    store.check_length(max(rows_needed(config) for config in configs))


def _vectors(dictionary: Any) -> Any:
    return dictionary.spec and dictionary.spec.identity


@cpu_by_default()
def evaluate(
    source: Path | str,
    config: Any,
    fresh: bool = False,
    others: Sequence[Path | str] = (),
    elsewhere: Sequence[str] = (),
) -> str:
    """Evaluate the dictionary at `source` on held-out data: `eval.json` beside it, and a table to print.

    Those of `others` that are for the same vectors are what its stability is judged against.
    """
    from saetools.evals.run import default_evaluations, run_evaluations
    from saetools.evals.table import table
    from saetools.formats.load import load

    source = local_source(source)
    subject = load_subject(source, config, elsewhere)
    loaded = {str(path): load(path, device=subject.dictionary.device) for path in others}
    alike = {name: other for name, other in loaded.items() if _vectors(other) == _vectors(subject.dictionary)}
    subject = replace(subject, others=alike)
    records = run_evaluations(
        subject,
        default_evaluations(config.evaluation),
        run_directory(source),
        fresh=fresh,
        progress=config.logging.progress,
    )
    return table(records, title=f"{source}: {subject.dictionary.kind} on held-out data")


def compare(sources: Sequence[Path | str], out: Path | str | None = None) -> str:
    """The evaluated dictionaries side by side, from the `eval.json` of each: a table to print, CSV and a page in `out`.

    Without `out` they go to `comparison/` beside the first run.
    """
    from saetools.atomic import make_directory, write_text
    from saetools.dashboard.evaluations import comparison_page
    from saetools.evals.comparison import comparison_csv, comparison_table
    from saetools.evals.run import EVAL_FILE, read_records

    paths = [local_source(source) for source in sources]
    directories = [run_directory(path) for path in paths]
    named = {
        name: read_records(directory / EVAL_FILE)
        for name, directory in zip(distinct_names(paths), directories, strict=True)
    }
    out = make_directory(expanded(out) if out else directories[0].absolute().parent / "comparison")
    write_text(out / "comparison.csv", comparison_csv(named))
    comparison_page(named, out / "comparison.html")
    return f"{comparison_table(named)}\ncomparison: {out / 'comparison.html'}, {out / 'comparison.csv'}"


def distinct_names(sources: Sequence[Path]) -> list[str]:
    """What tells the paths apart: each without the directories that all of them share."""
    parts = [source.parts for source in sources]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[: shared + 1] for p in parts}) == 1:
        shared += 1
    return ["/".join(p[shared:]) for p in parts]


def local_source(source: Path | str) -> Path:
    """A source of `saetools.load` as a path, beside which results can be left: of `hf://...` a copy in runs/hub."""
    from saetools.formats.hub import kept
    from saetools.formats.load import HUB

    return kept(str(source), KEPT) if str(source).startswith(HUB) else _named(expanded(source))


def _named(source: Path) -> Path:
    """The path, in full where it has no name of its own, as `.`: neither above nor beside that is anything found."""
    return source if source.name not in ("", "..") else source.resolve()


def run_directory(source: Path | str) -> Path:
    """Where results on the dictionary at `source` go: its run, or another library's directory.

    A dictionary of ours and a checkpoint stay as they were written: what is found of a bare one goes to NAME.results
    beside it, of a checkpoint to RUN/checkpoint_results/STEP. Of another library's file, to a directory of its name.
    """
    source = _named(expanded(source))
    if source.is_file():
        return source.with_suffix("")
    around = source if is_checkpoint(source) else source.parent
    if is_checkpoint(around):
        return around.parent.parent / "checkpoint_results" / around.name
    if (source / CONFIG_FILE).exists() or not (source / WEIGHTS).exists():
        return source
    return around if (around / CONFIG_FILE).exists() else source.with_name(f"{source.name}.results")


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint of a run: checkpoints/STEP."""
    return (path / "state.json").exists() and (path / DICTIONARY).is_dir()


def load_subject(source: Path | str | Dictionary, config: Any, elsewhere: Collection[str] = ()) -> Subject:
    """The dictionary at `source`, or a loaded one, with the held-out data of `config`.

    They are checked to belong together, but in `elsewhere`.
    """
    from saetools.dictionaries.belonging import check_belongs
    from saetools.evals.base import Subject
    from saetools.formats.load import load

    data = Data(config)
    device = data.dictionary_device
    dictionary = load(source, device=device) if isinstance(source, Path | str) else source.to(device)
    calibration = dictionary.calibration
    heldout = data.source("heldout", calibration)
    check_belongs(dictionary, heldout.spec, elsewhere)
    return Subject(
        dictionary=dictionary,
        spec=heldout.spec,
        heldout=heldout,
        host=data.host if data.has_host else None,
        tokens=data.plan("heldout") if data.has_host else None,
        seed=config.evaluation.seed,
    )


def config_of(source: Path | str, overrides: Sequence[str] = ()) -> Any:
    """The config that the dictionary at `source` was trained by, under overrides: its run's, or else its own copy.

    Raises FormatError where there is none, as for another library's.
    """
    source = _named(expanded(source))
    for directory in (source, *source.parents[:3]):
        if (directory / CONFIG_FILE).exists():
            return read_config(directory, overrides)
    if not source.exists():
        raise FormatError(f"{source} does not exist. Give a run directory or a dictionary directory.")
    carried = _carried_config(source)
    if carried is not None:
        return parse_run(carried, overrides, dictionary_configs())
    raise FormatError(
        f"{source} belongs to no run (no {CONFIG_FILE} there or above), so its held-out data are unknown. "
        f"Name them with --config FILE."
    )


def _carried_config(source: Path) -> dict[str, Any] | None:
    """What a dictionary of ours says of the run that trained it; None for others."""
    from saetools.safeio import read_json

    for directory in (source, source / DICTIONARY):
        if (directory / MANIFEST).exists() and (directory / "config.json").exists():
            record = read_json(directory / "config.json")
            provenance = record.get("provenance") if isinstance(record, dict) else None
            config = provenance.get("config") if isinstance(provenance, dict) else None
            if isinstance(config, dict) and isinstance(config.get("run"), dict):
                return config | {"run": config["run"] | {"dir": str(run_directory(source))}}
    return None


@cpu_by_default()
def harvest(config: Any, out: Path | str, points: Sequence[str], n_rows: int | None = None) -> dict[str, Path]:
    """Store the first n_rows training rows of each point; one directory per point. Goes on with what it finds there.

    Without n_rows, as many as a run of this config reads.
    """
    from saetools.activations.harvest import harvest_points
    from saetools.training.environment import set_threads

    n_rows = rows_needed(config) if n_rows is None else n_rows
    if n_rows < 1:
        raise ConfigError(
            f"{n_rows} rows are to be stored. Give 1 or more, or leave it to what a run of the config reads."
        )
    if not config.activations.has_host:
        raise ConfigError(
            f"activations.source is {config.activations.source}: rows that no host makes. What is stored are a host's "
            "activations; set activations.source to live."
        )
    set_threads(config.run.threads)
    data = Data(config)
    return harvest_points(data.host, data.plan("train"), points, config.activations, expanded(out), n_rows)


@contextmanager
def rows_bar(n_rows: int | None, wanted: bool = True) -> Iterator[Callable[[int], Any]]:
    """A progress bar over rows on stderr, where that is a terminal and it is wanted."""
    from tqdm import tqdm

    with tqdm(total=n_rows, unit=" rows", unit_scale=True, leave=False, disable=None if wanted else True) as bar:
        yield bar.update
