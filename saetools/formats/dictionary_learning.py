"""dictionary_learning: ae.pt (or checkpoints/ae_<step>.pt) and config.json, whose dict_class says what is computed.

    AutoEncoder            ReLU((x - bias) W^T + b)                encoder.weight [F, D], decoder.weight [D, F]
    AutoEncoderNew         ReLU(x W^T + b), nothing subtracted
    GatedAutoEncoder       ReLU(exp(r_mag) y + mag_bias) where y + gate_bias > 0, y = (x - decoder_bias) W^T
    JumpReluAutoEncoder    ReLU(pre) where pre > threshold, pre = x W_enc + b_enc, nothing subtracted       W_enc [D, F]
    AutoEncoderTopK        the k largest of ReLU((x - b_dec) W^T + b) in each row
    BatchTopKSAE           ReLU((x - b_dec) W^T + b) where above `threshold`, one number of training
    MatryoshkaBatchTopKSAE the same by W_enc [D, F], W_dec [F, D]

A threshold of -1 was never set (training stopped before its start step): such a file is refused.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saetools.atomic import committed_directory, write_bytes, write_json
from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError, MismatchError
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
from saetools.formats.pt import mentions, read_pt
from saetools.formats.thresholds import PER_ROW, POSITIVE, THRESHOLD, keeps_by_threshold, setting, threshold_below
from saetools.safeio import read_json

CONFIG, WEIGHTS, CHECKPOINTS = "config.json", "ae.pt", "checkpoints"
LINEAR = {"encoder.weight": "FD", "encoder.bias": "F", "decoder.weight": "DF"}
MATRICES = {"W_enc": "DF", "b_enc": "F", "W_dec": "FD", "b_dec": "D"}
TENSORS = {
    "AutoEncoder": LINEAR | {"bias": "D"},
    "AutoEncoderNew": LINEAR | {"decoder.bias": "D"},
    "GatedAutoEncoder": {"encoder.weight": "FD", "decoder.weight": "DF", "decoder_bias": "D"}
    | {"r_mag": "F", "gate_bias": "F", "mag_bias": "F"},
    "JumpReluAutoEncoder": MATRICES | {"threshold": "F"},
    "AutoEncoderTopK": LINEAR | {"b_dec": "D"},
    "BatchTopKSAE": LINEAR | {"b_dec": "D", "threshold": ""},
    "MatryoshkaBatchTopKSAE": MATRICES | {"threshold": ""},
}
COUNTS = {"AutoEncoderTopK": ("k", "threshold"), "BatchTopKSAE": ("k",), "MatryoshkaBatchTopKSAE": ("k", "group_sizes")}
"""Tensors that are no weights of inference: k (also in the config), a threshold not used there, groups."""

HANDLED = ("dict_class", "k", "activation_dim", "dict_size")
IGNORED = (  # of training
    *("trainer_class", "lr", "steps", "seed", "device", "layer", "lm_name", "submodule_name", "wandb_name"),
    *("warmup_steps", "sparsity_warmup_steps", "decay_start", "resample_steps", "sparsity_penalty", "l1_penalty"),
    *("auxk_alpha", "top_k_aux", "threshold_beta", "threshold_start_step", "target_l0", "bandwidth", "norm_factor"),
    *("group_fractions", "group_weights", "group_sizes", "sparsity_function", "sparsity_queue_length", "anneal_start"),
    *("p_start", "p_end", "n_sparsity_updates"),
)


class DictionaryLearningFormat(
    Format, name="dictionary_learning", layout=f"{WEIGHTS} and {CONFIG} with trainer.dict_class (needs allow_pt)"
):
    """The directory of one trainer, or one of its checkpoints."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.is_dir():
            return (path / WEIGHTS).is_file() and _trainer_of(path / CONFIG) is not None
        return any(mentions(path, *names) for names in TENSORS.values())

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        file = path / WEIGHTS if path.is_dir() else path
        config_file = next((f for f in _config_files(file) if _trainer_of(f) is not None), None)
        if config_file is None:
            raise FormatError(
                f"{file} has no {CONFIG} with trainer.dict_class beside it or above it: what the weights compute "
                "stands there. Keep the directory together as dictionary_learning wrote it."
            )
        content = read_pt(file, how.allow_pt, cls.name)
        config = read_json(config_file)
        trainer, buffer = config["trainer"], config.get("buffer")
        dictionary = from_dictionary_learning(config, content.tensors, file, config_file, how)
        said = {"host": trainer.get("lm_name"), "point": trainer.get("submodule_name"), "layer": trainer.get("layer")}
        context = buffer.get("ctx_len") if isinstance(buffer, dict) else None
        return placed(dictionary, how, {"layout": cls.name, **said, "context_tokens": context})

    @classmethod
    def write(cls, dictionary: Dictionary, path: Path) -> None:
        dict_class, settings, tensors = _for_dictionary_learning(dictionary)
        spec = dictionary.spec
        trainer = {"dict_class": dict_class, "activation_dim": dictionary.d_model}
        trainer |= {"dict_size": dictionary.config.n_features} | settings
        trainer |= {"lm_name": spec and spec.host, "submodule_name": spec and spec.point}
        buffer = io.BytesIO()
        torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, buffer)
        with committed_directory(path) as directory:
            write_json(directory / CONFIG, {"trainer": trainer})
            write_bytes(directory / WEIGHTS, buffer.getbuffer())


def from_dictionary_learning(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, where: Path, how: Reading = USUAL
) -> Dictionary:
    """The dictionary of a config and its tensors; `path` and `where` (of the config) are for messages."""
    check_keys(config, ("trainer",), ("buffer",), where, how.strict)
    trainer, buffer = config["trainer"], config.get("buffer")
    check_keys(trainer, HANDLED, IGNORED, where, how.strict)
    if isinstance(buffer, dict) and buffer.get("io") == "in_and_out":
        raise FormatError(f"{where}: it maps a module's input to its output; transcoders are not readable.")
    dict_class = require(trainer, "dict_class", tuple(TENSORS), "The class says what the weights compute.", where)
    sizes = {}
    for letter, key in (("D", "activation_dim"), ("F", "dict_size")):
        if trainer.get(key) is not None:
            sizes[letter] = positive_int(trainer, key, where)
    counts = {name: tensors[name] for name in COUNTS.get(dict_class, ()) if name in tensors}
    weights = {name: tensor for name, tensor in tensors.items() if name not in counts}
    found = check_tensors(weights, TENSORS[dict_class], sizes, path, how.strict)
    return _READERS[dict_class](found, _k(trainer, counts, where), path)


def _linear(found: Mapping[str, Tensor], b_dec_D: Tensor) -> dict[str, Tensor]:
    own = {"W_enc_FD": found["encoder.weight"], "W_dec_FD": found["decoder.weight"].T, "b_dec_D": b_dec_D}
    return own | ({"b_enc_F": found["encoder.bias"]} if "encoder.bias" in found else {})


def _auto_encoder(found: Mapping[str, Tensor], k: Any, path: Path) -> Dictionary:
    return build("relu_l1", {}, _linear(found, found["bias"]), path)


def _auto_encoder_new(found: Mapping[str, Tensor], k: Any, path: Path) -> Dictionary:
    weights = _linear(found, found["decoder.bias"])
    weights["b_enc_F"] = weights["b_enc_F"] + bias_of_centre(weights["W_enc_FD"], weights["b_dec_D"])
    return build("relu_l1", {}, weights, path)


def _gated(found: Mapping[str, Tensor], k: Any, path: Path) -> Dictionary:
    biases = {"b_enc_F": found["gate_bias"], "log_gain_F": found["r_mag"], "b_magnitude_F": found["mag_bias"]}
    return build("gated", {}, _linear(found, found["decoder_bias"]) | biases, path)


def _jumprelu(found: Mapping[str, Tensor], k: Any, path: Path) -> Dictionary:
    weights = {"W_enc_FD": found["W_enc"].T.contiguous(), "W_dec_FD": found["W_dec"], "b_dec_D": found["b_dec"]}
    weights["b_enc_F"] = found["b_enc"] + bias_of_centre(weights["W_enc_FD"], found["b_dec"])
    return build("jumprelu", {}, weights | {"threshold_F": found["threshold"]}, path)


def _top_k(found: Mapping[str, Tensor], k: Any, path: Path) -> Dictionary:
    return build("topk", {"k": k}, _linear(found, found["b_dec"]), path)


def _batch_top_k(found: Mapping[str, Tensor], k: Any, path: Path) -> Dictionary:
    if "W_enc" in found:
        weights = {"W_enc_FD": found["W_enc"].T, "W_dec_FD": found["W_dec"], "b_enc_F": found["b_enc"]}
        weights["b_dec_D"] = found["b_dec"]
    else:
        weights = _linear(found, found["b_dec"])
    threshold = found["threshold"]
    if not float(threshold) >= 0:
        raise FormatError(
            f"{path}: its threshold is {float(threshold):g}, which means that none was learnt: what inference keeps is "
            "unknown. Train beyond threshold_start_step and save again."
        )
    return build("jumprelu", {}, weights | {"threshold_F": threshold.expand_as(weights["b_enc_F"])}, path)


_READERS = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _batch_top_k,
}


def _k(trainer: Mapping[str, Any], counts: Mapping[str, Tensor], where: Path) -> int | None:
    """k of the config, which must be that of the weights."""
    stored = counts.get("k")
    if stored is None:
        return positive_int(trainer, "k", where) if trainer.get("k") is not None else None
    if stored.numel() != 1 or stored.dtype.is_floating_point:
        raise FormatError(f"{where}: k in the weights is no whole number but {stored.dtype} {list(stored.shape)}.")
    k = positive_int({"k": int(stored)}, "k", where)
    if trainer.get("k") is not None and positive_int(trainer, "k", where) != k:
        raise FormatError(f"{where}: k is {trainer['k']} in the config and {k} in the weights.")
    return k


def _trainer_of(file: Path) -> Mapping[str, Any] | None:
    """The `trainer` of a config of this layout; None for other files."""
    if not file.is_file():
        return None
    config = read_json(file)
    if not is_mapping_with(config, ("trainer",)) or not is_mapping_with(config["trainer"], ("dict_class",)):
        return None
    return config["trainer"]


def _config_files(file: Path) -> tuple[Path, ...]:
    above = (file.parent.parent / CONFIG,) if file.absolute().parent.name == CHECKPOINTS else ()
    return (file.parent / CONFIG, *above)


def _for_dictionary_learning(dictionary: Dictionary) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(class, its settings, its tensors)."""
    kind, own = dictionary.kind, dictionary.state_dict()
    known = {*PER_ROW, *POSITIVE, *THRESHOLD, "jumprelu", "gated"}
    if kind not in known:
        raise MismatchError(
            f"dictionary_learning has no class that computes what the kind {kind} does. Kinds that it computes: "
            f"{', '.join(sorted(known))}."
        )
    W_enc_FD, W_dec_FD, b_dec_D = dictionary.W_enc_FD, dictionary.W_dec_FD, dictionary.b_dec_D
    linear = {"encoder.weight": W_enc_FD, "decoder.weight": W_dec_FD.T}
    if kind == "gated":
        biases = {"gate_bias": own["b_enc_F"], "r_mag": own["log_gain_F"], "mag_bias": own["b_magnitude_F"]}
        return "GatedAutoEncoder", {}, linear | biases | {"decoder_bias": b_dec_D}
    linear["encoder.bias"] = own["b_enc_F"]
    matrices = {"W_enc": W_enc_FD.T, "W_dec": W_dec_FD, "b_dec": b_dec_D, "b_enc": own["b_enc_F"]}
    if kind == "jumprelu" or kind == "feature_choice":
        shifted_F = own["b_enc_F"] - bias_of_centre(W_enc_FD, b_dec_D)  # theirs subtracts nothing
        threshold_F = own["threshold_F"] if kind == "jumprelu" else threshold_below(dictionary)
        return "JumpReluAutoEncoder", {}, matrices | {"b_enc": shifted_F, "threshold": threshold_F}
    if keeps_by_threshold(dictionary):
        k = setting(dictionary, "k")
        counts = {"k": torch.tensor(k, dtype=torch.int32), "threshold": threshold_below(dictionary).float()}
        if kind == "matryoshka":
            ends = torch.tensor((0, *dictionary.config.group_ends()))  # type: ignore[attr-defined]
            groups = {"group_sizes": ends.diff()}
            return (
                "MatryoshkaBatchTopKSAE",
                {"k": k, "group_sizes": groups["group_sizes"].tolist()},
                matrices | counts | groups,
            )
        return "BatchTopKSAE", {"k": k}, linear | {"b_dec": b_dec_D} | counts
    if kind in PER_ROW:
        k = setting(dictionary, "k")
        counts = {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(-1.0, dtype=torch.float32)}
        return "AutoEncoderTopK", {"k": k}, linear | {"b_dec": b_dec_D} | counts
    return "AutoEncoder", {}, linear | {"bias": b_dec_D}
