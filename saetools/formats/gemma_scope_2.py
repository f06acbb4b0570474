"""Gemma Scope 2 (Gemma 3): config.json and params.safetensors.

The tensors and the formula are those of Gemma Scope 1 (`gemma_scope.py`), with w_enc [D, F] and w_dec [F, D].
Transcoders and cross-layer transcoders of the same layout, which reconstruct another point, are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError
from saetools.formats.base import USUAL, Format, Reading
from saetools.formats.foreign import check_keys, is_mapping_with, placed, require
from saetools.formats.gemma_scope import OWN_INPUT, from_gemma_scope
from saetools.safeio import load_safetensors, read_json, safetensors_shapes

CONFIG, WEIGHTS = "config.json", "params.safetensors"
TENSORS = {"w_dec", "w_enc", "b_enc", "b_dec", "threshold"}
HANDLED = ("architecture", "hf_hook_point_in", "hf_hook_point_out", "affine_connection")
IGNORED = ("model_name", "l0", "width", "type")  # of where it is from


class GemmaScope2Format(
    Format, name="Gemma Scope 2", layout=f"{CONFIG} with architecture jump_relu and hf_hook_point_in, and {WEIGHTS}"
):
    """The directory of one Gemma Scope 2 SAE, or its params.safetensors alone."""

    files = (CONFIG, WEIGHTS)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix == ".safetensors" and safetensors_shapes(path).keys() >= TENSORS
        if not (path / CONFIG).is_file():
            return (path / WEIGHTS).is_file()
        return is_mapping_with(read_json(path / CONFIG), ("architecture", "hf_hook_point_in"))

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        file = path if path.is_file() else path / WEIGHTS
        config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
        dictionary = from_gemma_scope_2(config, load_safetensors(file), path, how)
        said = {"host": config.get("model_name"), "point": config.get("hf_hook_point_in")}
        return placed(dictionary, how, {"layout": cls.name, **said})


def from_gemma_scope_2(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, how: Reading = USUAL
) -> Dictionary:
    """The JumpReLU dictionary of a config (empty: none) and its tensors; `path` is for messages. Raises FormatError."""
    where = path / CONFIG
    check_keys(config, HANDLED, IGNORED, where, how.strict)
    require(config, "architecture", ("jump_relu",), "Others have no counterpart here.", where)
    require(config, "affine_connection", (False,), OWN_INPUT, where)
    if config.get("hf_hook_point_out") not in (None, config.get("hf_hook_point_in")):
        points = f"it reads {config.get('hf_hook_point_in')} and reconstructs {config['hf_hook_point_out']}"
        raise FormatError(f"{where}: {points}. {OWN_INPUT}")
    return from_gemma_scope(tensors, path, how)
