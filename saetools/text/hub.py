"""Corpora read with `datasets`: local json, jsonl, parquet and txt files, and data sets of the hub.

Documents are rows; ids are `<file>:<row>` or `<split>:<row>`, a txt file is one document named by its path.
Local files are read without any attempt to reach the network.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from saetools.atomic import hash_file
from saetools.config import CorpusConfig
from saetools.errors import DataError
from saetools.text.base import Corpus
from saetools.text.files import TextFilesCorpus
from saetools.text.remote import find_commit
from saetools.text.tables import StreamCorpus, TableCorpus

READERS: dict[str, Callable[..., Any]] = {
    ".json": datasets.Dataset.from_json,
    ".jsonl": datasets.Dataset.from_json,
    ".parquet": datasets.Dataset.from_parquet,
}
SUFFIXES = (*READERS, ".txt")


def local_corpus(path: Path | str, text_field: str = "text", streaming: bool = False) -> Corpus:
    """The documents of a json, jsonl, parquet or txt file, or of all such files below a directory, sorted by path.

    Tables are converted to Arrow files in the cache of `datasets`; with `streaming` they are only read along.
    """
    path = Path(path)
    files = _files_of(path)
    root = path if path.is_dir() else path.parent
    if files[0].suffix == ".txt":
        return TextFilesCorpus(root, files)
    names = {_relative(file, root): file for file in files}
    content = [[name, hash_file(file)] for name, file in names.items()]
    if streaming:
        streams = {
            name: partial(_stream, str(file), partial(READERS[file.suffix], str(file), streaming=True))
            for name, file in names.items()
        }
        return StreamCorpus(streams, text_field, str(path), content)
    return TableCorpus({name: _read(file) for name, file in names.items()}, text_field, str(path), content)


def hub_corpus(config: CorpusConfig) -> Corpus:
    """A data set of the hub at the commit that it has now, or of the local cache when HF_HUB_OFFLINE is set."""
    found = find_commit(config.name, "dataset")
    offline_is_said = datasets.config.HF_HUB_OFFLINE
    if not found.online and not offline_is_said:
        raise DataError(
            f"The hub cannot be reached, but a downloaded copy of the data set {config.name!r} is in the cache: "
            "set HF_HUB_OFFLINE=1 to use it."
        )
    content = [config.name, found.commit, config.subset, config.split]
    source = f"the data set {config.name!r}, split {config.split!r}"
    with _data_errors(source):
        data = datasets.load_dataset(
            config.name, config.subset, split=config.split, revision=found.commit, streaming=config.streaming
        )
    if config.streaming:
        return StreamCorpus({config.split: partial(_stream, source, lambda: data)}, config.text_field, source, content)
    return TableCorpus({config.split: data}, config.text_field, source, content)


def _files_of(path: Path) -> list[Path]:
    """The files of one kind that `path` means; DataError where there is none, both kinds, or an empty table."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if file.suffix in SUFFIXES]
    if not files:
        raise DataError(f"No {', '.join(SUFFIXES)} file at {path}. Other files are not read as text.")
    if len({file.suffix == ".txt" for file in files}) > 1:
        raise DataError(
            f"{path} holds txt files beside {', '.join(READERS)} files: name the file, or a directory with one kind."
        )
    if empty := [str(file) for file in files if file.suffix in READERS and not file.stat().st_size]:
        raise DataError(f"{', '.join(empty[:3])} has no bytes, so no documents: write it again, or remove it.")
    return files


def _read(file: Path) -> datasets.Dataset:
    with _data_errors(str(file)):
        return READERS[file.suffix](str(file))


def _stream(source: str, open_stream: Callable[[], Any]) -> Iterator[Any]:
    with _data_errors(source):
        yield from open_stream()


@contextmanager
def _data_errors(source: str) -> Iterator[None]:
    """What `datasets` raises inside becomes a DataError that names the source; it is not logged as well."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except DataError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise DataError(f"{source} could not be read: {cause}") from error
    finally:
        logger.setLevel(level)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
