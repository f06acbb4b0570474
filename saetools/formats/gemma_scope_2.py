"""Gemma Scope 2 (Gemma 3): config.json and params.safetensors.

    pre = x w_enc + b_enc, b_dec not subtracted;  code = ReLU(pre) where pre > threshold           w_enc [D, F]
    recon = code w_dec + b_dec                                                                     w_dec [F, D]

Transcoders and cross-layer transcoders of the same layout, which reconstruct another point, are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError
from saetools.formats.base import USUAL, Format, Reading
from saetools.formats.foreign import bias_of_centre, build, check_keys, check_tensors, is_mapping_with, placed, require
from saetools.safeio import load_safetensors, read_json, safetensors_shapes

CONFIG, WEIGHTS = "config.json", "params.safetensors"
TENSORS = {"w_dec": "FD", "w_enc": "DF", "b_enc": "F", "b_dec": "D", "threshold": "F"}
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
            return path.suffix == ".safetensors" and safetensors_shapes(path).keys() >= TENSORS.keys()
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
    own_input = "Transcoders are not readable: our dictionaries reconstruct their own input, by atoms alone."
    require(config, "affine_connection", (False,), own_input, where)
    if config.get("hf_hook_point_out") not in (None, config.get("hf_hook_point_in")):
        points = f"it reads {config.get('hf_hook_point_in')} and reconstructs {config['hf_hook_point_out']}"
        raise FormatError(f"{where}: {points}. {own_input}")
    found = check_tensors(tensors, TENSORS, {}, path, how.strict)
    W_enc_FD = found["w_enc"].T.contiguous()
    weights = {
        "W_enc_FD": W_enc_FD,
        "b_enc_F": found["b_enc"] + bias_of_centre(W_enc_FD, found["b_dec"]),
        "W_dec_FD": found["w_dec"],
        "b_dec_D": found["b_dec"],
        "threshold_F": found["threshold"],
    }
    return build("jumprelu", {}, weights, path)
