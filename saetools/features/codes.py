"""Codes on disk: the sparse codes of many rows in shards, with where each row is from.

A directory: codes.json (CodesInfo), shards codes-00000.safetensors, ... and a manifest with their sizes and hashes.
A shard holds, in the ragged layout of SparseCode, without stored zeros:

    values  [M] float   codes of the rows, row after row, in units of raw x
    indices [M] int32   their features
    offsets [N + 1] int64   row n of the shard owns the slots offsets[n] : offsets[n + 1]
    where   [N, 2] int64    (document, position) of each row; the names of documents stand in codes.json
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from saetools.activations.base import ActivationBatch
from saetools.atomic import committed_directory, write_json, write_tensors
from saetools.dictionaries.base import Dictionary, SparseCode
from saetools.errors import ConfigError, DataError, FormatError, nearest
from saetools.records import FrozenModel, PointSpec
from saetools.safeio import load_safetensors, read_json, verify_directory

INFO = "codes.json"
MOST_INFO_BYTES = 4 << 30  # it names every document
SHARD_VALUES = 1 << 22
"""A shard is closed by the batch with which it has so many values."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ShardInfo(FrozenModel):
    """One file of codes."""

    file: str = Field(description="name in the directory")
    n_rows: int = Field(description="rows in it")
    n_values: int = Field(description="values in it")


class CodesInfo(FrozenModel):
    """What a directory of codes is: the content of codes.json."""

    version: Literal[1] = Field(1, description="version of this layout")
    source: str = Field(description="where the dictionary was loaded from")
    kind: str = Field(description="kind of the dictionary")
    n_features: int = Field(description="F")
    spec: PointSpec | None = Field(description="what the rows are")
    rows: str = Field(description="where the rows are from")
    documents: dict[int, str] = Field(description="name of each document by its number in `where`")
    shards: tuple[ShardInfo, ...] = Field(description="files in the order of the rows")

    @property
    def n_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_values(self) -> int:
        """Values of all shards."""
        return sum(shard.n_values for shard in self.shards)


class Codes(NamedTuple):
    """The codes of some rows and where these are from."""

    code: SparseCode
    where_N2: Tensor


@torch.no_grad()
def write_codes(
    path: Path | str,
    dictionary: Dictionary,
    batches: Iterable[ActivationBatch],
    rows: str,
    spec: PointSpec | None = None,
    document_name: Callable[[int], str] | None = None,
    dtype: str = "float32",
    progress: Callable[[int], None] = lambda n_rows: None,
) -> CodesInfo:
    """Encode rows and write their codes, atomically: the directory is there whole or not at all.

    `rows` says where they are from; `document_name`: the name of a document by its number. `progress` is told the
    number of rows of each batch. Raises RunError where `path` exists or cannot be written, ConfigError for another
    `dtype` than float32, bfloat16 and float16, DataError where a value is beyond it.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r} of codes.{nearest(dtype, DTYPES)} Known: {', '.join(DTYPES)}.")
    shards: list[ShardInfo] = []
    documents: dict[int, str] = {}
    with committed_directory(path) as directory:
        for number, (code, where_N2) in enumerate(_grouped(dictionary, batches, progress)):
            file = f"codes-{number:05d}.safetensors"
            assert code.offsets_N1 is not None
            tensors = {"values": _narrowed(code.values, dtype), "indices": code.indices}
            write_tensors(directory / file, tensors | {"offsets": code.offsets_N1, "where": where_N2})
            shards.append(ShardInfo(file=file, n_rows=len(code), n_values=len(code.values)))
            if document_name is not None:
                documents |= {int(n): document_name(int(n)) for n in where_N2[:, 0].unique() if int(n) not in documents}
        info = CodesInfo(
            source=str(dictionary.provenance.get("source", "")),
            kind=dictionary.kind,
            n_features=dictionary.config.n_features,
            spec=spec,
            rows=rows,
            documents=documents,
            shards=tuple(shards),
        )
        write_json(directory / INFO, info.model_dump(mode="json"))
    return info


def _narrowed(values_M: Tensor, dtype: str) -> Tensor:
    """The values in a dtype; DataError where a finite one would become infinite there.

    What would become 0, and with it silent, is the least number of the dtype.
    """
    narrow_M = values_M.to(DTYPES[dtype])
    over_M = narrow_M.isinf() & values_M.isfinite()
    if over_M.any():
        largest = float(values_M[over_M].abs().max())
        raise DataError(f"a code has the value {largest:.4g}, which {dtype} does not hold. Take bfloat16 or float32.")
    least = torch.finfo(narrow_M.dtype).tiny * torch.finfo(narrow_M.dtype).eps
    return torch.where(narrow_M != 0, narrow_M, (values_M.sign() * least).to(narrow_M.dtype))


def read_info(path: Path | str) -> CodesInfo:
    """What a directory of codes is; its files are checked against their manifest. Raises FormatError."""
    path = Path(path)
    verify_directory(path)
    try:
        return CodesInfo.model_validate(read_json(path / INFO, MOST_INFO_BYTES))
    except ValidationError as error:
        raise FormatError(f"{path / INFO}: {' '.join(str(error).split())[:300]}") from error


def read_codes(path: Path | str) -> Iterator[Codes]:
    """The codes of a directory, shard by shard, in the order of the rows. Raises FormatError."""
    info = read_info(path)
    for shard in info.shards:
        tensors = load_safetensors(Path(path) / shard.file)
        code = SparseCode(tensors["values"], tensors["indices"], info.n_features, tensors["offsets"])
        yield Codes(code, tensors["where"])


def _grouped(
    dictionary: Dictionary, batches: Iterable[ActivationBatch], progress: Callable[[int], None]
) -> Iterator[Codes]:
    """The codes of the rows in groups of about SHARD_VALUES values."""
    codes: list[SparseCode] = []
    where: list[Tensor] = []
    for batch in batches:
        if not len(batch):
            continue
        batch = batch.to(dictionary.device)
        code = dictionary.encode(batch.x_ND, batch.fields).to_ragged()
        codes.append(code)
        where.append(batch.where_N2.cpu())
        progress(len(batch))
        if sum(len(c.values) for c in codes) >= SHARD_VALUES:
            yield Codes(SparseCode.concatenate(codes), torch.cat(where))
            codes, where = [], []
    if codes:
        yield Codes(SparseCode.concatenate(codes), torch.cat(where))
