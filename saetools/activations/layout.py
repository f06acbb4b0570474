"""How a store of activations lies on disk: rows, blocks, shards, and the JSON that describes them.

    manifest.json                    written last: what the rows are, and size and hashes of all else
    shard-00000.bin                  rows without gaps: x, where (2 int64), fields; little-endian
    shard-00000.documents.json       {document number: id} of the shard's rows

While a store is being made there is `header.json` and, for each complete shard, `shard-00000.record.json`; both are
gone when the manifest is there. A block is `block_rows` rows of a shard (its last block may be shorter) and has one
xxh3-128; nothing smaller is ever read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
import xxhash
from pydantic import Field, ValidationError
from torch import Tensor

from saetools import atomic, safeio
from saetools.activations.base import ActivationBatch, Counts, canonical_json
from saetools.activations.live import TORCH_DTYPES
from saetools.config import Dtype
from saetools.errors import FormatError
from saetools.records import Calibration, FrozenModel, PointSpec
from saetools.text.base import Split

MANIFEST = "manifest.json"
HEADER = "header.json"
BLOCK_BYTES = 2 << 20
SHARD_BYTES = 128 << 20
_MAX_JSON_BYTES = 1 << 30
_BIT_TYPES = {2: ("<i2", torch.int16), 4: ("<i4", torch.int32)}  # by bytes per value


class ShardRecord(FrozenModel):
    """One shard: whole host batches."""

    first_batch: int = Field(description="number of the first host batch")
    batch_rows: tuple[int, ...] = Field(description="rows of each host batch")
    n_bytes: int = Field(description="size of the file of rows")
    blocks: tuple[str, ...] = Field(description="xxh3-128 of each block of rows")
    documents: str = Field(description="xxh3-128 of the file of document ids")
    counts: Counts = Field(description="what became of the tokens of these batches")

    @property
    def n_rows(self) -> int:
        """Rows in the shard."""
        return sum(self.batch_rows)


class StoreHeader(FrozenModel):
    """What the rows of a store are."""

    format: Literal["saetools activations"] = "saetools activations"
    version: Literal[1] = 1
    spec: PointSpec = Field(description="host, point, tokenizer and BOS policy")
    split: Split = Field(description="split of the corpus")
    dtype: Dtype = Field(description="dtype of the rows")
    field_shapes: dict[str, tuple[int, ...]] = Field(description="further columns: shape per row, dtype of the rows")
    corpus: str = Field(description="fingerprint of the corpus")
    plan: str = Field(description="fingerprint of the plan of host batches")
    calibration: Calibration
    calibration_rows: int = Field(description="rows that the calibration was asked to measure")
    drop_outliers: bool
    block_rows: int = Field(description="rows per block, the unit of hashing and reading")
    shard_bytes: int = Field(description="a shard ends with the host batch that reaches this size")


class Manifest(FrozenModel):
    """A complete store."""

    header: StoreHeader
    n_rows: int
    n_batches: int = Field(description="host batches, from number 0 on")
    whole_epoch: bool = Field(description="whether these are all batches of the split")
    counts: Counts
    shards: tuple[ShardRecord, ...]


class RowLayout:
    """Conversion between rows in memory and rows in a shard."""

    def __init__(self, d_model: int, dtype: Dtype, field_shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.torch_dtype = TORCH_DTYPES[dtype]
        bits, self._torch_bits = _BIT_TYPES[self.torch_dtype.itemsize]
        columns: list[tuple] = [("x", bits, (d_model,)), ("where", "<i8", (2,))]
        columns += [("fields." + name, bits, shape) for name, shape in sorted(field_shapes.items())]
        self.record = np.dtype(columns)
        self.row_bytes = self.record.itemsize
        self.block_rows = max(1, BLOCK_BYTES // self.row_bytes)

    def pack(self, rows: ActivationBatch) -> np.ndarray:
        """The rows as an array of records."""
        packed = np.empty(len(rows), self.record)
        for name, column in rows.tensors().items():
            packed[name] = (column if name == "where" else column.cpu().view(self._torch_bits)).cpu().numpy()
        return packed

    def unpack(self, packed: np.ndarray) -> ActivationBatch:
        """The rows in memory of their own, with the columns that `packed` has."""
        return ActivationBatch.of({name: self._column(packed, name) for name in packed.dtype.names or ()})

    def _column(self, packed: np.ndarray, name: str) -> Tensor:
        native = packed[name].astype(packed[name].dtype.newbyteorder("="))
        column = torch.from_numpy(native)
        return column if name == "where" else column.view(self.torch_dtype)


def layout_of(header: StoreHeader) -> RowLayout:
    """How the columns of these rows lie in a shard."""
    return RowLayout(header.spec.d_model, header.dtype, header.field_shapes)


def shard_path(store: Path, index: int, suffix: Literal["bin", "documents.json", "record.json"]) -> Path:
    """A file of the shard with this index."""
    return store / f"shard-{index:05d}.{suffix}"


def block_hashes(data: memoryview, block_bytes: int) -> tuple[str, ...]:
    """xxh3-128 of each block of a shard."""
    return tuple(hash_of(data[i : i + block_bytes]) for i in range(0, len(data), block_bytes))


def hash_of(data: bytes | memoryview) -> str:
    """xxh3-128 of the bytes, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


# --- sealed JSON: a record together with its own hash ------------------------------------------------------

Record = TypeVar("Record", bound=FrozenModel)


def write_sealed(path: Path, record: FrozenModel) -> None:
    """Write a record such that any changed byte of the file is noticed by `read_sealed`."""
    content = record.model_dump(mode="json")
    atomic.write_text(path, canonical_json({"content": content, "xxh3_128": hash_of(canonical_json(content).encode())}))


def read_sealed(path: Path, kind: type[Record]) -> Record:
    """The record in a file; FormatError where it is missing, changed or of another version."""
    value = safeio.read_json(path, _MAX_JSON_BYTES)
    if not isinstance(value, dict) or set(value) != {"content", "xxh3_128"}:
        raise FormatError(f"{path} does not describe a store of activations. Give the directory that harvest made.")
    intact = value["xxh3_128"] == hash_of(canonical_json(value["content"]).encode())
    if not intact or path.read_bytes() != canonical_json(value).encode():
        raise FormatError(f"{path} was changed after it was written (its hash differs). Harvest the store again.")
    try:
        return kind.model_validate(value["content"])
    except ValidationError as error:
        raise FormatError(
            f"{path} is a store of another version: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}. "
            "Read it with the version of saetools that made it, or harvest it again."
        ) from error
