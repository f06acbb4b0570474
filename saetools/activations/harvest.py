"""Writing stores: activations of several points in one pass, resumable after a kill at any instant.

A shard is committed by its record, written after its other files; the store by its manifest. What a killed harvest
left uncommitted is deleted and made again, with the same bytes, so that the finished store is the same.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from saetools import atomic
from saetools.activations.base import GRAD, ActivationBatch, Counts, canonical_json
from saetools.activations.calibration import calibrate_all
from saetools.activations.layout import (
    HEADER,
    MANIFEST,
    SHARD_BYTES,
    Manifest,
    RowLayout,
    ShardRecord,
    StoreHeader,
    block_hashes,
    hash_of,
    read_sealed,
    shard_path,
    write_sealed,
)
from saetools.activations.live import LiveSource, live_sources
from saetools.config import ActivationsConfig
from saetools.errors import FormatError, MismatchError, RunError
from saetools.lm.base import Host
from saetools.text.packing import TokenPlan


def harvest_points(
    host: Host, plan: TokenPlan, points: Sequence[str], activations: ActivationsConfig, out: Path, n_rows: int
) -> dict[str, Path]:
    """Store at least `n_rows` rows of each point in `out/<canonical point>`, by one pass over the host."""
    sources = live_sources(
        host, plan, points, activations.dtype, activations.drop_outliers, gradients=activations.gradients
    )
    stores = {point: out / point for point in sources}
    harvest({stores[point]: source for point, source in sources.items()}, n_rows, activations.calibration_rows)
    return stores


def harvest(
    sources: Mapping[Path, LiveSource],
    n_rows: int,
    calibration_rows: int,
    shard_bytes: int = SHARD_BYTES,
) -> dict[Path, Manifest]:
    """Make the store of each source: whole host batches from number 0 until `n_rows` rows or the end of the epoch.

    The sources are not calibrated yet (and share a HostPass, so that the host runs once). A store that was begun with
    the same settings goes on after its last complete shard; one that is complete is left as it is. Each store equals
    what harvesting its point alone gives. Raises MismatchError where a directory holds something else, RunError where
    another process writes to it or the disk is full.
    """
    with ExitStack() as stack:
        for path in sources:
            stack.enter_context(_locked(atomic.make_directory(path)))
        headers = _headers(sources, calibration_rows, shard_bytes)
        writers = [StoreWriter(path, source, headers[path]) for path, source in sources.items()]
        manifests = {writer.path: writer.finished(n_rows) for writer in writers}
        _write([writer for writer in writers if manifests[writer.path] is None], n_rows)
        return {writer.path: manifests[writer.path] or writer.finish() for writer in writers}


def _write(writers: list["StoreWriter"], n_rows: int) -> None:
    """Feed the writers in step until each has its rows or its epoch ends."""
    streams = {writer.path: writer.source.read(writer.next_batch) for writer in writers}
    while writers := [writer for writer in writers if writer.n_rows < n_rows]:
        number = min(writer.next_batch for writer in writers)
        for writer in [writer for writer in writers if writer.next_batch == number]:
            item = next(streams[writer.path], None)
            if item is None or _past_epoch(writer.source, number):
                writers.remove(writer)
            else:
                writer.append(*item)


def _past_epoch(source: LiveSource, number: int) -> bool:
    return source.n_batches is not None and number >= source.n_batches


def _headers(sources: Mapping[Path, LiveSource], calibration_rows: int, shard_bytes: int) -> dict[Path, StoreHeader]:
    """The header of each store; calibrations of stores that were begun are theirs, the others are measured now."""
    headers: dict[Path, StoreHeader] = {}
    for path in sources:
        if (path / MANIFEST).exists():
            headers[path] = read_sealed(path / MANIFEST, Manifest).header
        elif (path / HEADER).exists():
            headers[path] = read_sealed(path / HEADER, StoreHeader)
        else:
            atomic.remove_temporaries(path)
            if (found := next(path.iterdir(), None)) is not None:
                raise MismatchError(f"{path} is not a store of activations: it holds {found.name}. Choose another.")
    new = [path for path in sources if path not in headers]
    measured = calibrate_all([sources[path] for path in new], calibration_rows) if new else []
    for path, calibration in zip(new, measured, strict=True):
        source = sources[path].with_calibration(calibration)
        headers[path] = StoreHeader(
            spec=source.spec,
            split=source.plan.split,
            dtype=source.dtype,
            field_shapes=_field_shapes(source),
            corpus=source.plan.corpus.fingerprint(),
            plan=source.plan.fingerprint(),
            calibration=calibration,
            calibration_rows=calibration_rows,
            drop_outliers=source.drops_outliers,
            block_rows=RowLayout(source.spec.d_model, source.dtype, _field_shapes(source)).block_rows,
            shard_bytes=shard_bytes,
        )
    for path, source in sources.items():
        _check_same(path, headers[path], source, calibration_rows, shard_bytes)
    return headers


def _check_same(path: Path, header: StoreHeader, source: LiveSource, calibration_rows: int, shard_bytes: int) -> None:
    wanted = {
        "spec": source.spec.identity,
        "dtype": source.dtype,
        "field_shapes": _field_shapes(source),
        "plan": source.plan.fingerprint(),
        "drop_outliers": source.drops_outliers,
        "calibration_rows": calibration_rows,
        "shard_bytes": shard_bytes,
    }
    held = {**dict(header), "spec": header.spec.identity}
    wrong = [name for name, value in wanted.items() if held[name] != value]
    if wrong:
        raise MismatchError(
            f"{path} holds a store with other settings: {', '.join(wrong)}. Harvest into another directory, or delete "
            "this one."
        )


def _field_shapes(source: LiveSource) -> dict[str, tuple[int, ...]]:
    return {GRAD: (source.spec.d_model,)} if source.gradients else {}


class StoreWriter:
    """One store under way. `append` takes consecutive host batches; complete shards are on disk."""

    def __init__(self, path: Path, source: LiveSource, header: StoreHeader) -> None:
        self.path, self.header = path, header
        self.source = source.with_calibration(header.calibration)
        self._layout = RowLayout(header.spec.d_model, header.dtype, header.field_shapes)
        self._pending: list[np.ndarray] = []
        self._pending_counts: list[Counts] = []
        atomic.remove_temporaries(path)
        if (path / MANIFEST).exists():
            self._manifest: Manifest | None = read_sealed(path / MANIFEST, Manifest)
            self.shards = list(self._manifest.shards)
            self._remove_scaffolding()
        else:
            self._manifest = None
            self.shards = self._committed()
            self._remove_uncommitted()
            if not (path / HEADER).exists():
                write_sealed(path / HEADER, header)
        self.next_batch = sum(len(shard.batch_rows) for shard in self.shards)
        self.n_rows = sum(shard.n_rows for shard in self.shards)

    def finished(self, n_rows: int) -> Manifest | None:
        """The manifest of a complete store; MismatchError where it has less than what is asked for."""
        manifest = self._manifest
        if manifest and manifest.n_rows < n_rows and not manifest.whole_epoch:
            raise MismatchError(
                f"{self.path} is a complete store of {manifest.n_rows} rows; {n_rows} were asked for. Harvest into "
                "another directory, or delete this one."
            )
        return manifest

    def append(self, number: int, rows: ActivationBatch, counts: Counts) -> None:
        """Take the rows of host batch `number`, the next one; write a shard when it is full."""
        assert number == self.next_batch
        self._pending.append(self._layout.pack(rows))
        self._pending_counts.append(counts)
        self.next_batch += 1
        self.n_rows += len(rows)
        if sum(packed.nbytes for packed in self._pending) >= self.header.shard_bytes:
            self._flush()

    def finish(self) -> Manifest:
        """Write what is pending and the manifest."""
        self._flush()
        plan = self.source.plan
        next(iter(plan.batches(self.next_batch)), None)  # now the plan knows whether its epoch ends here
        manifest = Manifest(
            header=self.header,
            n_rows=self.n_rows,
            n_batches=self.next_batch,
            whole_epoch=plan.n_batches == self.next_batch,
            counts=sum((shard.counts for shard in self.shards), Counts()),
            shards=tuple(self.shards),
        )
        write_sealed(self.path / MANIFEST, manifest)
        self._remove_scaffolding()
        return manifest

    def _flush(self) -> None:
        if not self._pending:
            return
        index, packed = len(self.shards), np.concatenate(self._pending)
        data = packed.view(np.uint8).data
        numbers = np.unique(packed["where"][:, 0]).tolist()
        documents = canonical_json({str(n): self.source.document_id(n) for n in numbers}).encode()
        record = ShardRecord(
            first_batch=self.next_batch - len(self._pending),
            batch_rows=tuple(len(p) for p in self._pending),
            n_bytes=len(data),
            blocks=block_hashes(data, self.header.block_rows * self._layout.row_bytes),
            documents=hash_of(documents),
            counts=sum(self._pending_counts, Counts()),
        )
        atomic.write_bytes(shard_path(self.path, index, "bin"), data)
        atomic.write_bytes(shard_path(self.path, index, "documents.json"), documents)
        write_sealed(shard_path(self.path, index, "record.json"), record)
        self.shards.append(record)
        self._pending, self._pending_counts = [], []

    def _committed(self) -> list[ShardRecord]:
        shards: list[ShardRecord] = []
        while (path := shard_path(self.path, len(shards), "record.json")).exists():
            record, data = read_sealed(path, ShardRecord), shard_path(self.path, len(shards), "bin")
            if not data.exists() or data.stat().st_size != record.n_bytes:
                raise FormatError(f"The shard {data} of an unfinished store is missing or damaged. Delete {self.path}.")
            shards.append(record)
        return shards

    def _remove_uncommitted(self) -> None:
        committed = {f"shard-{i:05d}" for i in range(len(self.shards))}
        for entry in self.path.glob("shard-*"):
            if entry.name.split(".")[0] not in committed:
                entry.unlink()

    def _remove_scaffolding(self) -> None:
        for entry in [*self.path.glob("shard-*.record.json"), self.path / HEADER]:
            entry.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the directory against other writers; the lock ends with the process, however it ends."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise RunError(f"Another process is writing to {path}. Wait for it, or choose another directory.") from error
    finally:
        os.close(handle)
