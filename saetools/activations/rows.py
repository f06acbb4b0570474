"""Rows from a file that somebody else made: .safetensors or .npy. No host, no text."""

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saetools import atomic
from saetools.activations.base import ActivationBatch, Counts, NumberedBatches, digest, places
from saetools.activations.calibration import drop_outliers, outlier_norm, outlier_rule
from saetools.activations.live import TORCH_DTYPES
from saetools.config import Dtype
from saetools.errors import ConfigError, DataError, FormatError
from saetools.records import Calibration, PointSpec
from saetools.safeio import npy_header
from saetools.text.base import Split

BATCH_ROWS = 4096  # rows per numbered batch: part of the stream, like a host batch
_X_NAME, _FIELD_NAMES, _WHERE_NAME = "x", ("grad",), "where"

Read = Callable[[int, int], Tensor]
"""(first row, row after the last) -> those rows."""


class RowsFile:
    """One matrix x [N, D] on disk, with `grad` [N, D] and `where` [N, 2] where the file has them, read by blocks.

    Raises FormatError at a file that is missing, damaged or of another layout.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        readers: dict[str, Callable[[Path], dict[str, tuple[tuple[int, ...], Read]]]] = {
            ".safetensors": _open_safetensors,
            ".npy": _open_npy,
        }
        if path.suffix not in readers:
            what = "a directory" if path.is_dir() else f"no {' or '.join(readers)} file"
            raise FormatError(f"{path} is {what}; rows are read from {' and '.join(readers)} files.")
        if not path.is_file():
            raise FormatError(f"The rows file {path} does not exist.")
        tensors = readers[path.suffix](path)
        x_name = self._name_of_x({name: shape for name, (shape, _) in tensors.items()})
        (self.n_rows, self.d_model), self._x = tensors[x_name]
        if not self.d_model:
            raise FormatError(f"{path}: its rows have no numbers (shape {self.n_rows} x 0).")
        self._fields = {name: tensors[name][1] for name in _FIELD_NAMES if name in tensors and name != x_name}
        self._where = tensors[_WHERE_NAME][1] if _WHERE_NAME in tensors else None
        for name in self._fields:
            self._check_shape(name, tensors[name][0], (self.n_rows, self.d_model))
        if self._where:
            self._check_shape(_WHERE_NAME, tensors[_WHERE_NAME][0], (self.n_rows, 2))

    @property
    def has_where(self) -> bool:
        """Whether the file says of each row which (document, position) it is."""
        return self._where is not None

    def read(self, first: int, end: int, gradients: bool = True) -> ActivationBatch:
        """Rows first .. end - 1 as they are in the file, with its gradients unless told not to.

        `where` is (row // 1000, row) where the file has none.
        Raises DataError at a row that is not finite.
        """
        where = places(first, end) if self._where is None else self._where(first, end).to(torch.int64)
        fields = {name: read(first, end) for name, read in self._fields.items() if gradients}
        rows = ActivationBatch(self._x(first, end), where, fields)
        for name, value_ND in {_X_NAME: rows.x_ND, **rows.fields}.items():
            self.check_finite(value_ND, name, first, "is not finite; remove it from the file")
        return rows

    def check_finite(self, value_ND: Tensor, name: str, first: int, cause: str) -> None:
        """DataError naming the first row that is not finite (counted from `first`), and the cause."""
        finite_N = torch.isfinite(value_ND).all(dim=1)
        if not bool(finite_N.all()):
            raise DataError(f"Row {first + int((~finite_N).nonzero()[0])} of `{name}` in {self.path} {cause}.")

    @cached_property
    def content_hash(self) -> str:
        """xxh3-128 of the file."""
        return atomic.hash_file(self.path)

    def _name_of_x(self, shapes: dict[str, tuple[int, ...]]) -> str:
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        candidates = (
            [_X_NAME] if _X_NAME in matrices else [m for m in matrices if m not in (_WHERE_NAME, *_FIELD_NAMES)]
        )
        if len(candidates) != 1:
            raise FormatError(
                f"{self.path} holds arrays of the shapes {shapes}; rows are the matrix `x` [N, D], or the only matrix "
                "of the file. Save the rows as one matrix, in a .safetensors file under the name x."
            )
        return candidates[0]

    def _check_shape(self, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if shape != wanted:
            raise FormatError(f"{self.path}: `{name}` has shape {shape}; beside x it must be {wanted}.")


class RowsSource:
    """Rows of a file as a RowSource. Held-out rows are those of `heldout_path`, else the last 10 % of `path`.

    Batches hold 4096 rows of the file each, in its order, rounded to `dtype`, fields too; the train split repeats for
    ever; without `gradients` a `grad` of the file is left out. A row that is not finite raises DataError. Without a
    calibration nothing is dropped as an outlier.
    """

    def __init__(
        self,
        path: Path | str,
        heldout_path: Path | str | None = None,
        split: Split = "train",
        dtype: Dtype = "float32",
        calibration: Calibration | None = None,
        drop_outliers: bool = True,
        batch_rows: int = BATCH_ROWS,
        gradients: bool = True,
    ) -> None:
        self.file = RowsFile(heldout_path if split == "heldout" and heldout_path else path)
        self.split, self.dtype, self.batch_rows, self._gradients = split, dtype, batch_rows, gradients
        self.first, self.end = _range_of(self.file, split, whole=heldout_path is not None)
        self.n_batches = math.ceil((self.end - self.first) / batch_rows)
        self.spec = PointSpec(host="rows", point="rows", d_model=self.file.d_model)
        self.counts = Counts()
        self._calibration, self.drops_outliers = calibration, drop_outliers

    @property
    def calibration(self) -> Calibration:
        if self._calibration is None:
            raise ConfigError("This source is not calibrated: use `calibrate` first.")
        return self._calibration

    def batches(self, start: int = 0) -> NumberedBatches:
        number = start
        while self.split == "train" or number < self.n_batches:
            yield number, self._batch(number % self.n_batches)
            number += 1

    def document_id(self, number: int) -> str:
        return f"{self.file.path.name}#{number}" if self.file.has_where else self.file.path.name

    @property
    def outlier_norm(self) -> float | None:
        return outlier_norm(self._calibration, self.drops_outliers)

    def fingerprint(self, calibrated: bool = True) -> str:
        return digest(
            {
                "content": self.file.content_hash,
                "rows": [self.first, self.end],
                "dtype": self.dtype,
                "batch_rows": self.batch_rows,
                "outliers_above": outlier_rule(self.outlier_norm, calibrated),
            }
            | ({} if self._gradients else {"gradients": False})
        )

    def _batch(self, i: int) -> ActivationBatch:
        first = self.first + i * self.batch_rows
        raw = self.file.read(first, min(first + self.batch_rows, self.end), self._gradients)
        rounded = ActivationBatch(
            self._round(raw.x_ND, "x", first),
            raw.where_N2,
            {name: self._round(value, name, first) for name, value in raw.fields.items()},
        )
        kept = rounded
        if self.drops_outliers and self._calibration is not None:
            kept = drop_outliers(rounded, self._calibration)
        self.counts += Counts(rows=len(kept), outliers=len(rounded) - len(kept))
        return kept

    def _round(self, value_ND: Tensor, name: str, first: int) -> Tensor:
        rounded = value_ND.to(TORCH_DTYPES[self.dtype])
        if rounded is not value_ND:
            cause = f"overflows in {self.dtype}; set activations.dtype to bfloat16 or float32"
            self.file.check_finite(rounded, name, first, cause)
        return rounded


def _range_of(file: RowsFile, split: Split, whole: bool) -> tuple[int, int]:
    """First row of a split and the row after its last."""
    if whole:
        border = {"train": file.n_rows, "heldout": 0}[split]
    else:
        border = file.n_rows - max(1, file.n_rows // 10)
    first, end = (0, border) if split == "train" else (border, file.n_rows)
    if first >= end:
        raise DataError(
            f"{file.path} has {file.n_rows} rows, so none are left for the {split} split (without "
            "activations.heldout_path, the last 10 % are held out). Give a file with more rows."
        )
    return first, end


def _open_safetensors(path: Path) -> dict[str, tuple[tuple[int, ...], Read]]:
    try:
        file = safe_open(path, framework="pt", device="cpu")  # checks that the declared tensors fill the file
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a readable .safetensors file: {error}. Write it again.") from error

    def reader(name: str) -> Read:
        return lambda first, end: slices[name][first:end]

    for name, part in slices.items():
        kinds = ("I32", "I64") if name == _WHERE_NAME else ("F16", "BF16", "F32", "F64")
        if part.get_dtype() not in kinds:
            raise FormatError(
                f"{path}: `{name}` is of type {part.get_dtype()}; rows are floating-point numbers, and where they are "
                "from is int64."
            )
    return {name: (tuple(part.get_shape()), reader(name)) for name, part in slices.items()}


def _open_npy(path: Path) -> dict[str, tuple[tuple[int, ...], Read]]:
    shape, dtype, offset = _npy_header(path)
    n_values = math.prod(shape[1:])

    def read(first: int, end: int) -> Tensor:
        values = np.fromfile(path, dtype, (end - first) * n_values, offset=offset + first * n_values * dtype.itemsize)
        if values.size != (end - first) * n_values:
            raise FormatError(f"{path} ends before row {end}: it was truncated while it was read.")
        return torch.from_numpy(values.astype(dtype.newbyteorder("="), copy=False).reshape(end - first, *shape[1:]))

    return {_X_NAME: (shape, read)}


def _npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and offset of the data, after checking that the file has all of them. No pickle is read."""
    shape, is_fortran, dtype, offset = npy_header(path)
    if is_fortran or dtype.kind != "f" or dtype.itemsize > 8:  # torch has no long double
        order = "Fortran" if is_fortran else "C"
        raise FormatError(
            f"{path} is a {dtype} array in {order} order; rows are floating-point numbers in C order. Save "
            "numpy.ascontiguousarray(x, dtype=numpy.float32)."
        )
    return shape, dtype, offset
