"""Llama Scope: hyperparams.json and checkpoints/final.safetensors.

    s    = sqrt(D) / dataset_average_activation_norm.in
    pre  = s x encoder.weight^T + encoder.bias, decoder.bias not subtracted       encoder.weight [F, D]
    code = ReLU(pre) where pre > s jump_relu_threshold; with sparsity_include_decoder_norm, where pre * ||W_dec|| is
    recon = (code decoder.weight^T + decoder.bias) / s                            decoder.weight [D, F]

The scale is folded, as for every dictionary of ours: rows are raw and the code is theirs divided by s, atoms unchanged.
The threshold in the file is thus one of raw rows. Source: He et al. 2024, arXiv 2410.20526.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError
from saetools.formats.base import USUAL, Format, Reading
from saetools.formats.foreign import (
    bias_of_centre,
    build,
    check_keys,
    check_tensors,
    is_mapping_with,
    placed,
    positive_int,
    require,
)
from saetools.safeio import load_safetensors, read_json

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
TENSORS = {"encoder.weight": "FD", "encoder.bias": "F", "decoder.weight": "DF", "decoder.bias": "D"}
HANDLED = (
    "d_model",
    "d_sae",
    "expansion_factor",
    "hook_point_in",
    "hook_point_out",
    "act_fn",
    "jump_relu_threshold",
    "norm_activation",
    "dataset_average_activation_norm",
    "sparsity_include_decoder_norm",
    "apply_decoder_bias_to_pre_encoder",
    "use_decoder_bias",
    "use_glu_encoder",
)
IGNORED = (  # of training, or of loading elsewhere
    "top_k",
    "l1_coefficient",
    "lp",
    "use_ghost_grads",
    "device",
    "dtype",
    "seed",
    "strict_loading",
    "sae_pretrained_name_or_path",
)


class LlamaScopeFormat(Format, name="Llama Scope", layout=f"{CONFIG} with jump_relu_threshold, and {WEIGHTS}"):
    """The directory of one Llama Scope SAE."""

    files = (CONFIG, WEIGHTS)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / CONFIG).is_file() and is_mapping_with(
            read_json(path / CONFIG), ("d_model", "jump_relu_threshold")
        )

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        config = read_json(path / CONFIG)
        dictionary = from_llama_scope(config, load_safetensors(path / WEIGHTS), path, how)
        return placed(dictionary, how, {"layout": cls.name, "point": config.get("hook_point_in")})


def from_llama_scope(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, how: Reading = USUAL
) -> Dictionary:
    """The JumpReLU dictionary for raw rows; `path` is for messages. Raises FormatError."""
    where = path / CONFIG
    check_keys(config, HANDLED, IGNORED, where, how.strict)
    _refuse_other_functions(config, where)
    sizes = {"D": positive_int(config, "d_model", where)}
    if "d_sae" in config:
        sizes["F"] = positive_int(config, "d_sae", where)
    else:
        sizes["F"] = sizes["D"] * positive_int(config, "expansion_factor", where)
    found = check_tensors(tensors, TENSORS, sizes, path / WEIGHTS, how.strict)
    scale = math.sqrt(sizes["D"]) / _positive(_average_norm(config), "dataset_average_activation_norm.in", where)
    W_dec_FD = found["decoder.weight"].T.contiguous()
    threshold = scale * _positive(config.get("jump_relu_threshold"), "jump_relu_threshold", where)
    norms = require(config, "sparsity_include_decoder_norm", (True, False), "It says what the threshold is of.", where)
    shift_F = bias_of_centre(found["encoder.weight"], found["decoder.bias"])
    weights = {
        "W_enc_FD": found["encoder.weight"],
        "b_enc_F": found["encoder.bias"] + shift_F,
        "W_dec_FD": W_dec_FD,
        "b_dec_D": found["decoder.bias"],
        "threshold_F": threshold / (W_dec_FD.norm(dim=1) if norms else torch.ones_like(shift_F)),
    }
    dictionary = build("jumprelu", {}, weights, where)
    dictionary.fold_scale_(scale)
    return dictionary


def _refuse_other_functions(config: Mapping[str, Any], where: Path) -> None:
    if config.get("hook_point_out", config.get("hook_point_in")) != config.get("hook_point_in"):
        raise FormatError(
            f"{where}: it reads {config.get('hook_point_in')} and reconstructs {config.get('hook_point_out')}; "
            "transcoders are not readable."
        )
    require(config, "act_fn", ("jumprelu",), "Other activation functions of this layout are not readable.", where)
    require(config, "norm_activation", ("dataset-wise",), "Rows scaled one by one have no counterpart here.", where)
    require(config, "apply_decoder_bias_to_pre_encoder", (False,), "The published ones do not subtract it.", where)
    require(config, "use_decoder_bias", (True,), "The weights have it.", where)
    require(config, "use_glu_encoder", (False,), "A gated linear encoder has no counterpart here.", where)


def _average_norm(config: Mapping[str, Any]) -> Any:
    norms = config.get("dataset_average_activation_norm")
    return norms.get("in") if isinstance(norms, dict) else None


def _positive(value: Any, name: str, where: Path) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise FormatError(f"{where}: {name} is {value!r}; it must be a positive number.")
    return float(value)
