"""Cached rows: a store read block by block, each block verified before its bytes are used. Never memory-mapped."""

import os
from collections.abc import Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path

import numpy as np

from saetools import safeio
from saetools.activations.base import GRAD, NumberedBatches
from saetools.activations.calibration import outlier_norm, outlier_rule
from saetools.activations.layout import (
    HEADER,
    MANIFEST,
    Manifest,
    ShardRecord,
    hash_of,
    layout_of,
    read_sealed,
    shard_path,
)
from saetools.activations.live import stream_fingerprint
from saetools.errors import DataError, FormatError, MismatchError
from saetools.lm.base import Host
from saetools.records import Calibration, PointSpec
from saetools.text.packing import TokenPlan


def _instead(path: Path) -> str:
    """What to do about a path that is no store: those in it, or else beside it, are named."""
    if (path / HEADER).is_file():
        return "It was begun: run the same harvest again to complete it."
    stores = [
        found.parent
        for place in (path, path.parent)
        for found in sorted(place.glob(f"*/{shard_path(Path(), 0, 'bin')}"))
    ]
    return f"Stores there: {', '.join(map(str, stores))}." if stores else "Give a directory made by `saetools harvest`."


class CachedSource:
    """The rows of a store as a RowSource: those of the live source that it was made from, bit for bit.

    Host batches have the numbers that they have live; starting at one is a seek. The train split repeats where the
    store holds a whole epoch; otherwise DataError is raised at its end. Raises FormatError naming the file where
    anything is missing, truncated or changed.

    A store with gradients also serves runs without: their rows are the same. MismatchError where gradients are asked
    for and the store has none.
    """

    def __init__(self, path: Path | str, gradients: bool = False) -> None:
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise FormatError(f"{path} is not a complete store of activations (no {MANIFEST}). {_instead(path)}")
        self.path = path
        self.manifest = read_sealed(path / MANIFEST, Manifest)
        self.header = self.manifest.header
        self.spec: PointSpec = self.header.spec
        if gradients and GRAD not in self.header.field_shapes:
            raise MismatchError(
                f"The store {path} has no gradients. Harvest again into another directory with activations.gradients "
                "true, or set it to false."
            )
        self.gradients = gradients
        kept = self.header.calibration
        self.calibration: Calibration = kept if gradients else kept.model_copy(update={"gradient_rms": None})
        self.counts = self.manifest.counts
        self._layout = layout_of(self.header)
        for i, shard in enumerate(self.manifest.shards):
            _check_size(shard_path(path, i, "bin"), shard)
        shards = self.manifest.shards
        self._shard_of = np.repeat(np.arange(len(shards)), [len(s.batch_rows) for s in shards])
        ends = [np.cumsum(s.batch_rows, dtype=np.int64) for s in shards]
        self._end = np.concatenate(ends) if ends else np.zeros(0, np.int64)  # in rows of its shard, of each batch
        self._rows = np.array([n for s in shards for n in s.batch_rows], np.int64)

    @property
    def n_batches(self) -> int | None:
        """Batches in an epoch; None where the store has only a part of one."""
        return self.manifest.n_batches if self.manifest.whole_epoch else None

    def batches(self, start: int = 0) -> NumberedBatches:
        number, stored = start, self.manifest.n_batches
        with closing(_ShardReader(self)) as reader:
            while True:
                if number >= stored and self.header.split == "heldout":
                    return
                if number >= stored and not (self.manifest.whole_epoch and stored):
                    raise self._too_few()
                i = number % stored
                end = int(self._end[i])
                packed = reader.rows(int(self._shard_of[i]), end - int(self._rows[i]), end)
                yield number, self._layout.unpack(packed if self.gradients else packed[["x", "where"]])
                number += 1

    def document_id(self, number: int) -> str:
        if number not in self._document_ids:
            raise DataError(f"The store {self.path} has no row of document {number}.")
        return self._document_ids[number]

    @property
    def outlier_norm(self) -> float | None:
        return outlier_norm(self.calibration, self.header.drop_outliers)

    def fingerprint(self, calibrated: bool = True) -> str:
        header, rule = self.header, outlier_rule(self.outlier_norm, calibrated)
        return stream_fingerprint(header.plan, header.spec, header.dtype, rule, self.gradients)

    def check_host(self, host: Host, point: str) -> None:
        """Raise MismatchError where the rows are not those of this host at this point."""
        expected = host.spec(host.canonical(point), self.spec.context_tokens)
        same_weights = self.spec.revision == expected.revision
        self._compare(self.spec.model_dump(), expected.identity if same_weights else expected.model_dump())

    def check_plan(self, plan: TokenPlan) -> None:
        """Raise MismatchError where the rows are not of the plan's corpus, split and windows.

        Order of documents (seed) and windows per batch are the store's own.
        """
        stored = {
            "corpus": self.header.corpus,
            "split": self.header.split,
            "context_tokens": self.spec.context_tokens,
        }
        self._compare(
            stored,
            {
                "corpus": plan.corpus.fingerprint(),
                "split": plan.split,
                "context_tokens": plan.context_tokens,
            },
        )

    def check_settings(self, **settings: object) -> None:
        """Raise MismatchError where a field of the header (or `point`) has another value than asked for."""
        stored = {"point": self.spec.point, **self.header.model_dump()}
        self._compare({name: stored[name] for name in settings}, settings)

    def check_length(self, n_rows: int) -> None:
        """Raise DataError where fewer than n_rows can be read: the store ends before and is not a whole epoch."""
        if self.manifest.n_rows < n_rows and not self.manifest.whole_epoch:
            raise DataError(
                f"The store {self.path} holds {self.manifest.n_rows} rows, a part of an epoch; the run reads {n_rows} "
                f"(training.n_tokens in whole batches and blocks, and activations.ring_rows ahead). Lower these, "
                f"or harvest with --rows {n_rows}."
            )

    def _compare(self, stored: Mapping[str, object], wanted: Mapping[str, object]) -> None:
        wrong = [f"{n} is {stored[n]!r}, the run has {wanted[n]!r}" for n in wanted if stored[n] != wanted[n]]
        if wrong:
            raise MismatchError(
                f"The store {self.path} is not of this run: {'; '.join(wrong)}. Change the configuration to what was "
                "harvested, or harvest again into another directory."
            )

    def _too_few(self) -> DataError:
        n = self.manifest
        return DataError(
            f"The store {self.path} holds {n.n_rows} rows in {n.n_batches} host batches, a part of an epoch, and all "
            f"were read. The shuffle ring reads activations.ring_rows rows ahead of training.n_tokens: lower "
            f"these, or harvest more rows (at least their sum, or a whole epoch, which repeats)."
        )

    @cached_property
    def _document_ids(self) -> dict[int, str]:
        ids: dict[int, str] = {}
        for i, shard in enumerate(self.manifest.shards):
            path = shard_path(self.path, i, "documents.json")
            listed = safeio.read_json(path)
            if hash_of(path.read_bytes()) != shard.documents:
                raise FormatError(f"{path} was changed after it was written (its hash differs). Harvest again.")
            ids |= {int(number): document_id for number, document_id in listed.items()}
        return ids


class _ShardReader:
    """Verified rows of shards for one reader: keeps one file open and the last block in memory."""

    def __init__(self, source: CachedSource) -> None:
        self._path, self._shards = source.path, source.manifest.shards
        self._record, self._block_rows = source._layout.record, source.header.block_rows
        self._shard = -1
        self._handle: int | None = None
        self._block: tuple[int, np.ndarray] | None = None  # (its number in the shard, its rows)

    def rows(self, shard: int, first: int, end: int) -> np.ndarray:
        """Rows first .. end - 1 of a shard, as records."""
        if shard != self._shard:
            self._open(shard)
        rows = np.empty(end - first, self._record)
        done = first
        while done < end:
            number, offset = divmod(done, self._block_rows)
            part = self._verified(number)[offset : offset + end - done]
            rows[done - first : done - first + len(part)] = part
            done += len(part)
        return rows

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._block, self._shard = None, None, -1

    def _open(self, shard: int) -> None:
        self.close()
        path = shard_path(self._path, shard, "bin")
        _check_size(path, self._shards[shard])
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise FormatError(f"Cannot read {path}: {error.strerror}.") from error
        self._shard = shard

    def _verified(self, number: int) -> np.ndarray:
        if self._block is None or self._block[0] != number:
            block_bytes = self._block_rows * self._record.itemsize
            data = self._read(number * block_bytes, block_bytes)
            if hash_of(data) != self._shards[self._shard].blocks[number]:
                raise FormatError(
                    f"{shard_path(self._path, self._shard, 'bin')} is damaged: block {number} (from byte "
                    f"{number * block_bytes}) does not have the hash that was recorded. Harvest the store again."
                )
            self._block = (number, np.frombuffer(data, self._record))
        return self._block[1]

    def _read(self, offset: int, n_bytes: int) -> bytes:
        """The bytes at an offset; fewer only at the end of the shard."""
        assert self._handle is not None
        wanted = min(n_bytes, self._shards[self._shard].n_bytes - offset)
        parts, got = [], 0
        try:
            while got < wanted and (part := os.pread(self._handle, wanted - got, offset + got)):
                parts.append(part)
                got += len(part)
        except OSError as error:
            raise FormatError(f"Cannot read {shard_path(self._path, self._shard, 'bin')}: {error.strerror}.") from error
        if got < wanted:
            raise FormatError(f"{shard_path(self._path, self._shard, 'bin')} was truncated while it was read.")
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_size(path: Path, shard: ShardRecord) -> None:
    if not path.is_file():
        raise FormatError(f"The shard {path} is missing. Harvest the store again.")
    present = path.stat().st_size
    if present != shard.n_bytes:
        raise FormatError(f"The shard {path} has {present} bytes instead of {shard.n_bytes}. Harvest the store again.")
