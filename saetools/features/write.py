"""Making a feature store on disk from a finished pass and the dictionary's weights."""

import json
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from saetools.atomic import committed_directory
from saetools.features.records import Example, FeatureRecord, StoreInfo
from saetools.features.schema import CREATE, CREATE_INDEXES, DATABASE, SHARD_BYTES, SUMMARY, storable

WORDS_AROUND_PEAK = 12  # tokens on each side of a top example's peak that full-text search finds


@dataclass(frozen=True)
class Entry:
    """One feature on its way to disk."""

    record: FeatureRecord
    examples: list[Example] = field(default_factory=list)


def write_store(path: Path | str, info: StoreInfo, entries: Iterable[Entry], replace: bool = True) -> None:
    """Write a feature store, whole or not at all. `entries` may be a generator: one feature is in memory at a time.

    Labels and notes of an earlier store at the same path stay, since they lie beside it.
    """
    with committed_directory(path, replace=replace) as directory:
        connection = sqlite3.connect(directory / DATABASE)
        try:
            connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + CREATE)
            connection.execute("INSERT INTO meta VALUES ('info', ?)", (info.model_dump_json(),))
            with _Shards(directory) as shards:
                for entry in entries:
                    _write_entry(connection, shards, entry)
            connection.executescript(CREATE_INDEXES + "ANALYZE;")
            connection.commit()
        finally:
            connection.close()


def _write_entry(connection: sqlite3.Connection, shards: "_Shards", entry: Entry) -> None:
    record, feature = entry.record, entry.record.feature
    top = [example for example in entry.examples if example.band == "top"]
    summary = record.model_dump(include=set(SUMMARY)) | {
        "peak_token": top[0].tokens[top[0].peak] if top else None,
        "top_logit": record.logits.top[0].token if record.logits and record.logits.top else None,
    }
    values = [summary[name] for name in SUMMARY] + list(record.map_xy or (None, None))
    connection.execute(f"INSERT INTO features VALUES ({', '.join('?' * len(values))})", [storable(v) for v in values])
    connection.execute(
        "INSERT INTO records VALUES (?, ?)", (feature, _compress(json.dumps(record.model_dump()).encode()))
    )
    if entry.examples:
        piece = _compress(json.dumps([example.to_json() for example in entry.examples]).encode())
        connection.execute("INSERT INTO examples VALUES (?, ?, ?, ?, ?)", (feature, *shards.append(piece)))
    logits = " ".join(weight.token for weight in record.logits.top) if record.logits else ""
    contexts = " ".join(_around_peak(example) for example in top[:5])
    connection.execute(
        "INSERT INTO words (rowid, logits, contexts) VALUES (?, ?, ?)", (feature, storable(logits), storable(contexts))
    )


class _Shards:
    """Files of at most SHARD_BYTES (but for a single longer piece) that pieces are appended to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0
        self._file = self._path.open("wb")

    @property
    def _path(self) -> Path:
        return self._directory / f"examples-{self._number:05d}.bin"

    def append(self, piece: bytes) -> tuple[str, int, int, str]:
        """(shard, start, length, xxh3-128) of the piece."""
        if self._file.tell() and self._file.tell() + len(piece) > SHARD_BYTES:
            self._file.close()
            self._number += 1
            self._file = self._path.open("wb")
        start = self._file.tell()
        self._file.write(piece)
        return self._path.name, start, len(piece), xxhash.xxh3_128(piece).hexdigest()

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _compress(data: bytes) -> bytes:
    return zlib.compress(data, 1)


def _around_peak(example: Example) -> str:
    return "".join(example.tokens[max(0, example.peak - WORDS_AROUND_PEAK) : example.peak + WORDS_AROUND_PEAK + 1])
