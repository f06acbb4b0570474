"""EleutherAI sparsify: cfg.json and sae.safetensors of one hook point.

    pre  = (x - b_dec) encoder.weight^T + encoder.bias                        encoder.weight [F, D]
    code = the k largest of ReLU(pre);  recon = code W_dec + b_dec            W_dec [F, D]: not transposed

Transcoders (which do not subtract b_dec and reconstruct another point) and skip connections are refused: our
dictionaries reconstruct their own input by atoms alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saetools.atomic import committed_directory, write_json, write_tensors
from saetools.dictionaries.base import Dictionary
from saetools.errors import MismatchError
from saetools.formats.base import USUAL, Format, Reading
from saetools.formats.foreign import build, check_keys, check_tensors, is_mapping_with, placed, positive_int, require
from saetools.formats.thresholds import PER_ROW, keeps_by_threshold, setting
from saetools.safeio import load_safetensors, read_json

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
TENSORS = {"W_dec": "FD", "encoder.weight": "FD", "encoder.bias": "F", "b_dec": "D"}
HANDLED = ("d_in", "k", "num_latents", "expansion_factor", "activation", "signed", "skip_connection", "transcode")
IGNORED = ("normalize_decoder", "multi_topk")  # of training: the saved decoder is what inference uses


class SparsifyFormat(Format, name="sparsify", layout=f"{CONFIG} with d_in and k, and {WEIGHTS}"):
    """The directory of one hook point that sparsify saved."""

    files = (CONFIG, WEIGHTS)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if not (path / CONFIG).is_file():
            return False
        values = read_json(path / CONFIG)
        return is_mapping_with(values, ("d_in", "k")) and "d_sae" not in values

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        dictionary = from_sparsify(read_json(path / CONFIG), load_safetensors(path / WEIGHTS), path, how)
        return placed(dictionary, how, {"layout": cls.name, "point": path.name})  # named after the module

    @classmethod
    def write(cls, dictionary: Dictionary, path: Path) -> None:
        if dictionary.kind not in PER_ROW or keeps_by_threshold(dictionary):
            raise MismatchError(
                "sparsify computes the k largest of each row and nothing else; this dictionary "
                f"is of kind {dictionary.kind}. Kinds that it computes: {', '.join(PER_ROW)}, with k features per row."
            )
        norms_F = dictionary.W_dec_FD.detach().float().norm(dim=1)
        config = {
            "activation": "topk",
            "expansion_factor": max(1, dictionary.config.n_features // dictionary.d_model),
            "normalize_decoder": bool(((norms_F - 1).abs() < 1e-2).all()),  # of training there
            "num_latents": dictionary.config.n_features,
            "k": setting(dictionary, "k"),
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": dictionary.d_model,
        }
        tensors = {
            "encoder.weight": dictionary.W_enc_FD,
            "encoder.bias": dictionary.b_enc_F,
            "W_dec": dictionary.W_dec_FD,
            "b_dec": dictionary.b_dec_D,
        }
        with committed_directory(path) as directory:
            write_json(directory / CONFIG, config)
            write_tensors(directory / WEIGHTS, tensors)


def from_sparsify(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, how: Reading = USUAL
) -> Dictionary:
    """The TopK dictionary of a sparsify config and its tensors; `path` is for messages. Raises FormatError."""
    where = path / CONFIG
    check_keys(config, HANDLED, IGNORED, where, how.strict)
    atoms_only = "Our dictionaries reconstruct their own input, by atoms alone."
    require(config, "transcode", (False,), atoms_only, where)
    require(config, "skip_connection", (False,), atoms_only, where)
    require(config, "activation", ("topk",), "Other selections have no counterpart here.", where)
    require(config, "signed", (False,), "Negative codes of a signed top-k are not readable.", where)
    sizes = {"D": positive_int(config, "d_in", where)}
    if config.get("num_latents"):
        sizes["F"] = positive_int(config, "num_latents", where)
    else:  # 0: as many times the width
        sizes["F"] = sizes["D"] * positive_int(config, "expansion_factor", where)
    found = check_tensors(tensors, TENSORS, sizes, path / WEIGHTS, how.strict)
    weights = {
        "W_enc_FD": found["encoder.weight"],
        "b_enc_F": found["encoder.bias"],
        "W_dec_FD": found["W_dec"],
        "b_dec_D": found["b_dec"],
    }
    return build("topk", {"k": positive_int(config, "k", where)}, weights, where)
