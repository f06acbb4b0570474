"""Our own format of a dictionary: a directory of config.json, model.safetensors and manifest.json.

The weights are those of training (for scaled rows, unfolded), bit for bit; config.json says of what vectors they are
(PointSpec), how rows were scaled, and how they were trained. The manifest holds size and hash of both.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from saetools.atomic import MANIFEST, committed_directory, write_json, write_tensors
from saetools.dictionaries.base import Dictionary, dictionary_class, make_dictionary
from saetools.errors import ConfigError, FormatError, MismatchError
from saetools.formats.base import Format, Reading
from saetools.records import Calibration, FrozenModel, PointSpec
from saetools.safeio import load_safetensors, read_json, verify_directory

SCHEMA_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
BESIDE = ("README.md", ".gitattributes", ".cache")
"""What a copy from the hub holds besides."""


class DictionaryRecord(FrozenModel):
    """Everything about a saved dictionary but its weights: the content of config.json."""

    schema_version: int = Field(description="version of this layout")
    dictionary: dict[str, Any] = Field(description="config of the kind")
    d_model: int = Field(gt=0, description="D, width of the vectors")
    seed: int = Field(description="seed of the initial weights")
    scale: float = Field(gt=0, allow_inf_nan=False, description="factor on raw rows that the weights are for")
    spec: PointSpec | None = Field(description="what the vectors are")
    calibration: Calibration | None = Field(description="constants measured on the first rows")
    provenance: dict[str, Any] = Field(description="how it was trained: tokens, run, versions, ...")


class Stored(NamedTuple):
    """A dictionary as it was trained, and its record."""

    dictionary: Dictionary
    record: DictionaryRecord


def save_dictionary(
    dictionary: Dictionary,
    path: Path | str,
    spec: PointSpec | None,
    calibration: Calibration | None = None,
    provenance: Mapping[str, Any] | None = None,
    scale: float | None = None,
    replace: bool = False,
) -> None:
    """Write the training weights as they are, atomically: `path` is there whole or not at all.

    `scale` is the factor on raw rows that the dictionary expects: by default that of the calibration, without one 1.
    The state of training must have been absorbed (`absorb_`) before. Raises MismatchError where the parts are of
    different width, RunError where `path` exists (unless `replace`) or cannot be written.
    """
    widths = {"the point": spec and spec.d_model, "the calibration": calibration and len(calibration.b_dec_start)}
    for what, width in widths.items():
        if width is not None and width != dictionary.d_model:
            raise MismatchError(f"the dictionary has width {dictionary.d_model}, {what} has {width}.")
    record = DictionaryRecord(
        schema_version=SCHEMA_VERSION,
        dictionary=dictionary.config.model_dump(mode="json"),
        d_model=dictionary.d_model,
        seed=dictionary.seed,
        scale=scale if scale is not None else calibration.scale if calibration is not None else 1.0,
        spec=spec,
        calibration=calibration,
        provenance=dict(provenance or {}),
    )
    with committed_directory(path, replace=replace) as directory:
        write_json(directory / CONFIG, record.model_dump(mode="json"))
        write_tensors(directory / WEIGHTS, dictionary.state_dict())


def load_unfolded(path: Path | str, device: str | torch.device = "cpu") -> Stored:
    """The dictionary as it was trained, for scaled rows, with its record. Raises FormatError naming file and key."""
    path = Path(path)
    verify_directory(path, allow_extra=BESIDE)
    record = _read_record(path / CONFIG)
    tensors = load_safetensors(path / WEIGHTS)
    dictionary = _build(record, tensors, path)
    dictionary.spec, dictionary.calibration, dictionary.provenance = record.spec, record.calibration, record.provenance
    return Stored(dictionary.to(device).eval(), record)


def load_dictionary(
    path: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Dictionary:
    """The dictionary for raw activations: the scale is folded into biases and thresholds.

    Agrees to 1e-5 relative with the unfolded one on scaled rows. `dtype` (None: as saved) is that of weights and
    biases; V stays float64. Raises FormatError naming file and key.
    """
    dictionary, record = load_unfolded(path, device)
    dictionary.fold_scale_(record.scale)
    if dtype is not None:
        total_variance = dictionary.total_variance
        dictionary.to(dtype=dtype)
        dictionary.total_variance = total_variance
    return dictionary


class NativeFormat(Format, name="saetools", layout=f"{CONFIG}, {WEIGHTS} and {MANIFEST}"):
    """The directory that `save_dictionary` writes."""

    files = (CONFIG, WEIGHTS, MANIFEST)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if (path / MANIFEST).is_file() and (path / WEIGHTS).is_file():
            return True
        return (path / CONFIG).is_file() and b'"schema_version"' in (path / CONFIG).read_bytes()[:1000]

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        return load_dictionary(path, how.device, how.dtype)

    @classmethod
    def write(cls, dictionary: Dictionary, path: Path) -> None:
        save_dictionary(dictionary, path, dictionary.spec, dictionary.calibration, dictionary.provenance, scale=1.0)


def _read_record(path: Path) -> DictionaryRecord:
    values = read_json(path)
    if not isinstance(values, dict):
        raise FormatError(f"{path} holds no mapping; it is not the config of a dictionary.")
    version = values.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise FormatError(f"{path} has no valid schema_version ({version!r}); it is not the config of a dictionary.")
    if version > SCHEMA_VERSION:
        raise FormatError(
            f"{path} has schema_version {version}; this version of saetools reads up to {SCHEMA_VERSION}. "
            "Update saetools to load it."
        )
    try:
        return DictionaryRecord.model_validate(values)
    except ValidationError as error:
        raise FormatError(f"{path}: {_first_problem(error)}") from error


def _build(record: DictionaryRecord, tensors: dict[str, Tensor], path: Path) -> Dictionary:
    """The dictionary that the record describes, with these weights. Sizes are checked before anything is allocated."""
    try:
        cls = dictionary_class(str(record.dictionary.get("kind")))
        config = cls.Config.model_validate(record.dictionary)
        _check_shape(path / WEIGHTS, "W_dec_FD", tensors.get("W_dec_FD"), (config.n_features, record.d_model))
        dictionary = make_dictionary(config, record.d_model, record.seed)
    except ValidationError as error:
        raise FormatError(f"{path / CONFIG}: dictionary.{_first_problem(error)}") from error
    except ConfigError as error:
        raise FormatError(f"{path / CONFIG}: {error}") from error
    own = dictionary.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own:
            raise FormatError(f"{path / WEIGHTS} has the unknown key {name!r}; known: {', '.join(own)}.")
        _check_shape(path / WEIGHTS, name, tensors.get(name), tuple(own[name].shape))
        if tensors[name].dtype.is_floating_point != own[name].dtype.is_floating_point:
            raise FormatError(f"{path / WEIGHTS}: {name} is {tensors[name].dtype}, expected {own[name].dtype}.")
    dictionary.load_state_dict(tensors, assign=True)
    return dictionary


def _check_shape(path: Path, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is None:
        raise FormatError(f"{path} lacks the key {name!r}.")
    if tuple(tensor.shape) != shape:
        raise FormatError(
            f"{path}: {name} has shape {list(tensor.shape)} ({math.prod(tensor.shape):,} numbers); "
            f"the config says {list(shape)}."
        )


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
