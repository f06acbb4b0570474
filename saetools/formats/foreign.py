"""What the readers of other libraries' layouts share: strict keys and shapes, and turning weights into ours.

Every key of a config and every tensor is handled, ignored by name, or refused: a setting that we do not know may
change what the dictionary computes. Weights in half precision are widened to float32, which loses nothing.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from saetools.dictionaries.base import Dictionary, dictionary_class, make_dictionary
from saetools.errors import ConfigError, FormatError
from saetools.formats.base import Reading

CHUNK_ROWS = 4096

log = logging.getLogger(__name__)


def is_mapping_with(values: Any, keys: Collection[str]) -> bool:
    """Whether a JSON value is a mapping that has all these keys."""
    return isinstance(values, dict) and values.keys() >= set(keys)


def check_keys(
    values: Mapping[str, Any], handled: Collection[str], ignored: Collection[str], path: Path, strict: bool
) -> None:
    """Refuse settings that we neither follow nor know to be without effect on the forward pass; not strict: warn."""
    unknown = sorted(values.keys() - set(handled) - set(ignored))
    if not unknown:
        return
    found = f"{path} has the unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}"
    if strict:
        raise FormatError(
            f"{found}, which may change what the dictionary computes. Update saetools, or pass strict=False if you "
            "know that inference does not depend on it."
        )
    log.warning("%s, passed over.", found)


def require(values: Mapping[str, Any], key: str, allowed: Collection[Any], reason: str, path: Path) -> Any:
    """The value of a setting that is absent (None) or one of `allowed`; FormatError with the reason otherwise."""
    value = values.get(key)
    if value is not None and not any(type(value) is type(known) and value == known for known in allowed):
        raise FormatError(f"{path}: {key} is {value!r}; readable is {' or '.join(map(repr, allowed))}. {reason}")
    return value


def positive_int(values: Mapping[str, Any], key: str, path: Path) -> int:
    """A count or width in a config."""
    value = values.get(key)
    if type(value) is not int or value < 1:
        raise FormatError(f"{path}: {key} is {value!r}; it must be a positive integer.")
    return value


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, str], sizes: Mapping[str, int], path: Path, strict: bool
) -> dict[str, Tensor]:
    """The tensors in float32 (float64 stays), after checking that they are those of `shapes`, no more, no fewer.

    Not strict: others are passed over with a warning. `shapes` writes each shape in letters ("DF"); `sizes` gives the
    letters' sizes where the config does, others are taken from the first tensor that has the letter. Raises FormatError
    naming the key.
    """
    known = dict(sizes)
    for name in sorted(tensors.keys() - shapes.keys()):
        if strict:
            raise FormatError(f"{path} has the unknown tensor {name!r}; known here: {', '.join(shapes)}.")
        log.warning("%s has the unknown tensor %r, passed over.", path, name)
    tensors = {name: tensors[name] for name in shapes if name in tensors}
    for name, letters in shapes.items():
        if name not in tensors:
            raise FormatError(f"{path} lacks the tensor {name!r}; it has {', '.join(sorted(tensors)) or 'no other'}.")
        tensor = tensors[name]
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise FormatError(f"{path}: {name} is {tensor.dtype}; weights are of 16, 32 or 64 bit floating point.")
        if tensor.ndim == len(letters):
            for letter, size in zip(letters, tensor.shape, strict=True):
                known.setdefault(letter, size)
        expected = tuple(known.get(letter) for letter in letters)
        if tuple(tensor.shape) != expected or 0 in expected:
            raise FormatError(
                f"{path}: {name} has shape {list(tensor.shape)}; expected is [{', '.join(letters)}] with "
                f"{', '.join(f'{letter} = {size}' for letter, size in known.items())}."
            )
    return {name: t if t.dtype == torch.float64 else t.float() for name, t in tensors.items()}


def bias_of_centre(W_enc_FD: Tensor, b_dec_D: Tensor) -> Tensor:
    """W_enc b_dec [F]: x W_enc^T + b = (x - b_dec) W_enc^T + (b + W_enc b_dec), for encoders that do not centre."""
    centre = b_dec_D.double()
    return torch.cat([rows.double() @ centre for rows in W_enc_FD.split(CHUNK_ROWS)]).to(W_enc_FD.dtype)


def k_of(values: Mapping[str, Any], how: Reading, path: Path, layout: str) -> int:
    """Features per row: what the file says, or else the reader."""
    if values.get("k") is not None:
        return positive_int(values, "k", path)
    if how.k is None:
        raise FormatError(
            f"{path}: files of {layout} do not say how many features fire per row. Pass k= to saetools.load, or --k to "
            "saetools convert."
        )
    return positive_int({"k": how.k}, "k", path)


def build(kind: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> Dictionary:
    """A dictionary of ours with these weights, by our names and orientation (row i is feature i)."""
    cls = dictionary_class(kind)
    n_features, d_model = weights["W_dec_FD"].shape
    try:
        dictionary = make_dictionary(cls.configure(n_features=n_features, **settings), d_model)
    except (ValidationError, ConfigError) as error:
        raise FormatError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    total_variance = dictionary.total_variance
    dictionary.load_state_dict(
        {name: t.contiguous() for name, t in weights.items()} | {"total_variance": total_variance}, assign=True
    )
    return dictionary.eval()


def placed(dictionary: Dictionary, how: Reading, provenance: Mapping[str, Any]) -> Dictionary:
    """The dictionary on its device, weights in `dtype` (None: as they are; V stays float64), knowing where it is from.

    What the file says of host and point stays in the words of the library that wrote it: no PointSpec, whose names are
    ours, is made of it. Entries that are None are left out.
    """
    dictionary.provenance = {name: value for name, value in provenance.items() if value is not None}
    total_variance = dictionary.total_variance
    dictionary.to(device=how.device, dtype=how.dtype)
    dictionary.total_variance = total_variance.to(how.device)
    return dictionary
