"""The reading side of a feature store, and what people write beside it. No torch here: pages are made without it."""

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import index
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO

import numpy as np
import xxhash
from pydantic import ValidationError

from saetools.atomic import MANIFEST, hash_file
from saetools.errors import DataError, FormatError, RunError
from saetools.features.filters import BOUND, BOUNDED, FOLDED, SPACED, Filter, checked_column, conditions
from saetools.features.records import Example, FeatureRecord, StoreInfo
from saetools.features.schema import (
    ANNOTATIONS_SUFFIX,
    CREATE_ANNOTATIONS,
    DATABASE,
    SHARDS,
    SORTABLE,
    SUMMARY,
    storable,
)
from saetools.rng import generator
from saetools.safeio import read_json

MAX_PIECE_BYTES = 64 << 20  # of one feature's examples, decompressed
MAX_WAIT_SECONDS = 20.0  # for others who write labels: where three never pause, one may wait for more than five


@dataclass(frozen=True)
class TableRow:
    """A feature as a line of a table."""

    feature: int
    density: float
    count: int
    mean: float | None
    mean_square: float
    skewness: float | None
    kurtosis: float | None
    max_value: float | None
    n_contexts: int
    peak_token: str | None
    top_logit: str | None
    label: str


@dataclass(frozen=True)
class TablePage:
    """Some rows of a table and how many there are in all."""

    rows: tuple[TableRow, ...]
    total: int


class FeatureStore:
    """What is known of every feature. Threads may share one object.

    Its files stay open, so that it reads what it was opened on though the store is made anew at the same path.
    Labels, notes and lists are kept in a second file beside the store, made at the first of them; all else is
    read only.
    """

    sortable = SORTABLE
    """Columns of numbers by which tables are sorted and filtered."""
    bound, spaced, bounded = BOUND.pattern, SPACED.pattern, BOUNDED
    """The form of a bound such as max<=5 in a search, with spaces in it, and the column that each name stands for."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, shards: dict[str, BinaryIO], info: StoreInfo
    ) -> None:
        self.path, self.info = path, info
        self._connection, self._shards, self._lock = connection, shards, RLock()
        self._attached = False

    @staticmethod
    def open(path: Path | str) -> "FeatureStore":
        """The store in a directory. Raises FormatError where it is missing, damaged or of another version."""
        # labels lie beside it, also where it is opened from within, and wherever the process goes later
        path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link
        database = path / DATABASE
        if not database.is_file():
            raise FormatError(
                f"{path} is not a feature store: it has no {DATABASE}. `saetools dashboard RUN` makes one."
            )
        place = path.stat().st_ino
        with ExitStack() as opened:  # closes what was opened where the store is none
            shards: dict[str, BinaryIO] = {
                file.name: opened.enter_context(file.open("rb", buffering=0)) for file in path.glob(SHARDS)
            }
            _verify(path)
            with _sqlite_errors(database):
                address = f"{database.resolve().as_uri()}?mode=ro&immutable=1"
                connection = sqlite3.connect(address, uri=True, check_same_thread=False, timeout=MAX_WAIT_SECONDS)
                opened.callback(connection.close)
                connection.create_function(FOLDED, 1, str.casefold, deterministic=True)
                row = connection.execute("SELECT value FROM meta WHERE key = 'info'").fetchone()
            try:
                info = StoreInfo.model_validate_json(row[0] if row else "")
            except ValidationError as error:
                cause = error.errors()[0]["msg"]
                raise FormatError(f"{database} is of another version: {cause}. Make it anew.") from None
            if path.stat().st_ino != place:
                raise RunError(f"{path} was made anew while it was being opened. Open it again.")
            opened.pop_all()
        return FeatureStore(path, connection, shards, info)

    def close(self) -> None:
        """Close its files."""
        self._connection.close()
        for file in self._shards.values():
            file.close()

    # --- features -------------------------------------------------------------------------------------------

    def feature(self, feature: int) -> FeatureRecord:
        """All that is known of one feature. DataError where there is none of that number."""
        rows = self._rows("SELECT record FROM records WHERE feature = ?", (self._known(feature),))
        if not rows:
            raise FormatError(f"{self.path / DATABASE} lacks feature {feature}. Make the store anew.")
        try:
            return FeatureRecord.model_validate(json.loads(_decompress(rows[0][0], self.path / DATABASE)))
        except ValidationError as error:
            raise FormatError(f"{self.path / DATABASE}: the record of feature {feature} is damaged: {error}") from None

    def examples(self, feature: int) -> list[Example]:
        """The feature's contexts, band by band. FormatError where their bytes are not those that were written."""
        feature = self._known(feature)
        found = self._rows("SELECT shard, start, length, xxh3_128 FROM examples WHERE feature = ?", (feature,))
        if not found:
            return []
        shard, start, length, expected = found[0]
        file = self.path / shard
        if shard not in self._shards:
            raise FormatError(f"{file} is missing. Make the store anew.")
        data = os.pread(self._shards[shard].fileno(), length, start)  # threads share the file, so no seek
        if len(data) != length or xxhash.xxh3_128(data).hexdigest() != expected:
            raise FormatError(f"{file}: the examples of feature {feature} are not what was written: damaged.")
        return [Example.of_json(entry) for entry in json.loads(_decompress(data, file))]

    def table(
        self, sort: str = "-density", filter: Filter | None = None, offset: int = 0, limit: int = 50
    ) -> TablePage:
        """Some rows of the table of features. `sort` is a column of `schema.SORTABLE` or `label`, `-` for descending.

        Undefined values, and features without a label, come last either way; equal ones in the order of features.
        Raises DataError at an unknown column.
        """
        column, descending = sort.removeprefix("-"), sort.startswith("-")
        where, values = conditions(filter or Filter(), self._has_annotations)
        join = "LEFT JOIN notes.labels AS labels USING (feature)" if self._has_annotations else ""
        label = "coalesce(labels.label, '')" if join else "''"
        name = f"nullif({label}, '')" if column == "label" else f"features.{checked_column(column)}"
        order = f"{name} DESC NULLS LAST" if descending else f"{name} ASC NULLS LAST"
        columns = ", ".join(f"features.{part}" for part in SUMMARY)
        rows = self._rows(
            f"SELECT {columns}, {label} FROM features {join} WHERE {where} "
            f"ORDER BY {order}, features.feature LIMIT ? OFFSET ?",
            (*values, max(0, limit), max(0, offset)),
        )
        total = self.info.n_features
        if values or where != "1":
            total = self._rows(f"SELECT count(*) FROM features WHERE {where}", tuple(values))[0][0]
        return TablePage(tuple(TableRow(*row) for row in rows), total)

    def columns(self, *names: str) -> dict[str, np.ndarray]:
        """Whole columns as float64 arrays in the order of features (nan: undefined); also `x` and `y` of the map."""
        for name in names:
            if name not in {"x", "y"}:
                checked_column(name)
        parts = [np.zeros((0, len(names)))]
        with self._lock, _sqlite_errors(self.path / DATABASE):
            cursor = self._connection.execute(f"SELECT {', '.join(names)} FROM features ORDER BY feature")
            while rows := cursor.fetchmany(65_536):  # a million rows as tuples would be 200 MB
                parts.append(np.array(rows, dtype=np.float64))
        array = np.concatenate(parts)
        return {name: array[:, index] for index, name in enumerate(names)}

    # --- labels, notes, lists -------------------------------------------------------------------------------

    def annotation(self, feature: int) -> tuple[str, str]:
        """(label, note) of a feature; empty where there is none."""
        feature = self._known(feature)
        if not self._has_annotations:
            return "", ""
        rows = self._rows("SELECT label, note FROM notes.labels WHERE feature = ?", (feature,))
        return rows[0] if rows else ("", "")

    def annotations(self) -> dict[int, tuple[str, str]]:
        """(label, note) of every feature that has one."""
        if not self._has_annotations:
            return {}
        rows = self._rows("SELECT feature, label, note FROM notes.labels ORDER BY feature")
        return {feature: (label, note) for feature, label, note in rows}

    def annotate(self, feature: int, label: str, note: str = "") -> None:
        """Set label and note of a feature; both empty removes them. Durable when it returns."""
        feature = self._known(feature)
        self._attach_annotations(create=True)
        if label or note:
            self._write("INSERT OR REPLACE INTO notes.labels VALUES (?, ?, ?)", (feature, label, note))
        else:
            self._write("DELETE FROM notes.labels WHERE feature = ?", (feature,))

    def lists(self) -> dict[str, list[int]]:
        """All lists of features by name."""
        found: dict[str, list[int]] = {}
        if self._has_annotations:
            for name, feature in self._rows("SELECT name, feature FROM notes.lists ORDER BY name, feature"):
                found.setdefault(name, []).append(feature)
        return found

    def set_list(self, name: str, features: Sequence[int]) -> None:
        """Make, replace or (with no features) remove a list."""
        self._attach_annotations(create=True)
        with self._lock, _sqlite_errors(self._annotations_path), self._connection:
            name = str(storable(name))
            self._connection.execute("DELETE FROM notes.lists WHERE name = ?", (name,))
            rows = [(name, feature) for feature in dict.fromkeys(map(self._known, features))]
            self._connection.executemany("INSERT INTO notes.lists VALUES (?, ?)", rows)

    @property
    def _annotations_path(self) -> Path:
        return self.path.with_name(self.path.name + ANNOTATIONS_SUFFIX)

    @property
    def _has_annotations(self) -> bool:
        """Whether anyone has written any, of whatever process."""
        self._attach_annotations(create=False)
        return self._attached

    def _attach_annotations(self, create: bool) -> None:
        path = self._annotations_path
        with self._lock:
            if self._attached or not (create or path.exists()):
                return
            with _sqlite_errors(path):
                self._connection.execute("ATTACH DATABASE ? AS notes", (f"{path.resolve().as_uri()}?mode=rwc",))
                try:
                    self._connection.executescript(CREATE_ANNOTATIONS)
                except sqlite3.Error:
                    self._connection.rollback()
                    self._connection.execute("DETACH DATABASE notes")  # so that it can be tried again
                    raise
            self._attached = True

    # --- queries --------------------------------------------------------------------------------------------

    def _known(self, feature: int) -> int:
        """The number as Python's own: SQLite takes numpy's for bytes. DataError where the store has no such feature."""
        try:
            number = index(feature)
        except TypeError:
            raise DataError(f"a feature is a whole number, not {feature!r}.") from None
        if not 0 <= number < self.info.n_features:
            raise DataError(f"there is no feature {number}: the store has 0 to {self.info.n_features - 1}.")
        return number

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, _sqlite_errors(self.path / DATABASE):
            return self._connection.execute(query, [storable(value) for value in values]).fetchall()

    def _write(self, query: str, values: Sequence[Any]) -> None:
        with self._lock, _sqlite_errors(self._annotations_path), self._connection:
            self._connection.execute(query, [storable(value) for value in values])


def sample_of_firing(count_F: np.ndarray, n_features: int | None, seed: int) -> list[int]:
    """A uniform sample of the features that fire, ascending; all of them where there are no more than n_features.

    The same for the same counts, number and seed; a smaller sample is part of a greater one.
    """
    firing = np.flatnonzero(count_F > 0)
    order = generator(seed, "features of the page").permutation(len(firing))
    return sorted(firing[order[:n_features]].tolist())


def _verify(path: Path) -> None:
    """The database has the size and hash that the manifest states. Shards are verified piece by piece when read."""
    manifest = read_json(path / MANIFEST)
    entry = manifest.get("files", {}).get(DATABASE) if isinstance(manifest, dict) else None
    if not isinstance(entry, dict) or hash_file(path / DATABASE) != entry.get("xxh3_128"):
        raise FormatError(f"{path / DATABASE} is not what {path / MANIFEST} lists: damaged or replaced. Make it anew.")


def _decompress(data: bytes, file: Path) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, MAX_PIECE_BYTES)
    except zlib.error as error:
        raise FormatError(f"{file} is damaged: {error}.") from error


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise RunError(f"cannot use {path}: {error}. Check that its directory is writable and has room.") from error
    except sqlite3.DatabaseError as error:
        raise FormatError(f"{path} is damaged or not a feature store: {error}.") from error
