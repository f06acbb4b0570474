"""The codes of any text or rows file: `saetools encode`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from saetools import pipeline
from saetools.activations.base import ActivationBatch
from saetools.activations.live import LiveSource
from saetools.activations.rows import BATCH_ROWS, RowsFile
from saetools.dictionaries.base import Dictionary
from saetools.dictionaries.belonging import check_belongs
from saetools.errors import ConfigError, MismatchError
from saetools.features.codes import CodesInfo, write_codes
from saetools.formats.load import load
from saetools.records import PointSpec
from saetools.safeio import expanded
from saetools.text.packing import TokenPlan
from saetools.text.whole import whole

ANY_RUN = ["--dictionary.kind=topk", "--dictionary.n_features=1", "--dictionary.k=1", "--run.dir=unused"]
"""What a config must say though nothing is trained."""


@pipeline.cpu_by_default()
def encode_rows(
    source: Path | str, rows: Path | str, out: Path | str, dtype: str = "float32", n_rows: int | None = None
) -> CodesInfo:
    """Write the codes of the first n_rows (None: all) of a rows file (`x` [N, D], .safetensors or .npy) to `out`."""
    _check_number(n_rows)
    dictionary = _loaded(source)
    file = RowsFile(expanded(rows))
    if file.d_model != dictionary.d_model:
        raise MismatchError(f"{rows} has rows of width {file.d_model}, the dictionary is for {dictionary.d_model}.")
    n_rows = file.n_rows if n_rows is None else min(n_rows, file.n_rows)

    def batches() -> Iterator[ActivationBatch]:
        for first in range(0, n_rows, BATCH_ROWS):
            yield file.read(first, min(n_rows, first + BATCH_ROWS))

    with pipeline.rows_bar(n_rows) as progress:
        return write_codes(expanded(out), dictionary, batches(), str(rows), dictionary.spec, None, dtype, progress)


@pipeline.cpu_by_default()
def encode_corpus(
    source: Path | str,
    corpus: str | None,
    out: Path | str,
    config: Path | str | None = None,
    overrides: Sequence[str] = (),
    elsewhere: Sequence[str] = (),
    dtype: str = "float32",
    n_rows: int | None = None,
) -> CodesInfo:
    """Write the codes of every token of a corpus (all its documents, held-out or not; at most n_rows tokens) to `out`.

    Host and point are those that the dictionary was made for, unless `config` or `overrides` name others and
    `elsewhere` says that this is meant. BOS and padding are left out. Raises MismatchError where they do not fit.
    """
    _check_number(n_rows)
    dictionary = _loaded(source)
    settings = _settings(source, dictionary, config, [*overrides, *(["--corpus.name", corpus] if corpus else [])])
    data = pipeline.Data(settings)
    dictionary.to(data.dictionary_device)
    plan = TokenPlan(
        whole(data.corpus),
        data.host.tokenize,
        "heldout",  # the split that ends after one pass; `whole` puts all documents in it
        settings.corpus.context_tokens,
        settings.activations.host_batch,
        settings.run.seed,
        data.host.prepend_bos,
        settings.corpus.max_documents,
    )
    live = LiveSource(
        data.host,
        plan,
        settings.activations.point,
        settings.activations.dtype,
        gradients=settings.activations.gradients,
    )
    check_belongs(dictionary, live.spec, elsewhere)
    with pipeline.rows_bar(n_rows) as progress:
        return write_codes(
            *(expanded(out), dictionary, _first(live, n_rows), data.corpus.description),
            *(live.spec, plan.document_id, dtype, progress),
        )


def _check_number(n_rows: int | None) -> None:
    if n_rows is not None and n_rows < 1:
        raise ConfigError(f"{n_rows} rows are to be encoded. Give 1 or more, or leave it out for all.")


def _first(live: LiveSource, n_rows: int | None) -> Iterator[ActivationBatch]:
    left = n_rows
    for _, rows in live.batches():
        if left is not None:
            rows = rows.select(slice(left))
            left -= len(rows)
        yield rows
        if left == 0:
            return


def _loaded(source: Path | str) -> Dictionary:
    dictionary = load(source)
    dictionary.provenance = {"source": str(source), **dictionary.provenance}
    return dictionary


def _settings(source: Path | str, dictionary: Dictionary, config: Path | str | None, overrides: Sequence[str]) -> Any:
    """The config that names host, point and text: the one given, the run's, or what the dictionary says of itself."""
    if config is not None:
        return pipeline.read_config(config, overrides)
    spec = dictionary.spec
    if spec is None or spec.host == "rows":
        named = {item.split("=")[0] for item in overrides}
        if not named >= {"--host.name", "--activations.point"}:
            said = [
                f"{name} {dictionary.provenance[name]}" for name in ("host", "point") if name in dictionary.provenance
            ]
            heard = f" Its file says {', '.join(said)}, by the names of who wrote it." if said else ""
            raise ConfigError(
                f"this dictionary does not know its host and point.{heard} Name them: --host.name NAME "
                "--activations.point POINT, or --config FILE."
            )
        return pipeline.parse_run(None, [*ANY_RUN, *overrides], pipeline.dictionary_configs())
    return pipeline.parse_run(None, [*ANY_RUN, *_of(spec), *overrides], pipeline.dictionary_configs())


def _of(spec: PointSpec) -> list[str]:
    said = {
        "host.name": spec.host,
        "host.dtype": spec.host_dtype,
        "host.prepend_bos": None if spec.prepend_bos is None else str(spec.prepend_bos).lower(),
        "host.compatibility_mode": str(spec.compatibility_mode).lower(),
        "activations.point": spec.point,
        "corpus.context_tokens": spec.context_tokens,
    }
    return [f"--{name}={value}" for name, value in said.items() if value is not None]
