"""SAELens: cfg.json and sae_weights.safetensors, as its `save_inference_model` and older versions write them.

    pre  = (x - b_dec) W_enc + b_enc, without the subtraction where apply_b_dec_to_input is false     W_enc [D, F]
    standard: ReLU(pre);  jumprelu: ReLU(pre) where pre > threshold
    topk: ReLU of the k largest pre; with rescale_acts_by_decoder_norm, of pre * ||W_dec||, decoded by W_dec / ||W_dec||
    batchtopk (a checkpoint of training): as topk, but all above topk_threshold; its inference form is jumprelu
    matryoshka_batchtopk (a checkpoint of training): the same
    abstopk: as topk, the k largest |pre| with their sign
    gated: ReLU(exp(r_mag) * xW + b_mag) where xW + b_gate > 0
    matching_pursuit: atoms one by one for what is left of x - b_dec, until an atom comes again or little is left
    recon = code W_dec + b_dec                                                                        W_dec [F, D]

What does not subtract b_dec, and the decoder's norms, are folded into biases and weights: the function is the same.
Not readable: activations normalised per row, and scales that training measured and the file does not say.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saetools.atomic import committed_directory, write_json, write_tensors
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
from saetools.formats.thresholds import PER_ROW as KEEPS_K
from saetools.formats.thresholds import POSITIVE, THRESHOLD, keeps_by_threshold, setting, threshold_below
from saetools.safeio import load_safetensors, read_json

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"
"""The version whose layout is written: files that name none are read there by the rules of before 6.0."""

AFFINE = {"W_dec": "FD", "W_enc": "DF", "b_enc": "F", "b_dec": "D"}
TENSORS = {
    "standard": AFFINE,
    "topk": AFFINE,
    "jumprelu": AFFINE | {"threshold": "F"},
    "abstopk": AFFINE,
    "batchtopk": AFFINE | {"topk_threshold": ""},
    "matryoshka_batchtopk": AFFINE | {"topk_threshold": ""},
    "matching_pursuit": {"W_dec": "FD", "b_dec": "D"},
    "gated": {"W_dec": "FD", "W_enc": "DF", "b_gate": "F", "b_mag": "F", "r_mag": "F", "b_dec": "D"},
}
MOST_STEPS = 1 << 14
"""Steps of pursuit that hold a place for every row; a larger number in a file is a mistake or an attack."""
PER_ROW = {"topk": "topk", "abstopk": "abs_topk"}
HANDLED = (
    "architecture",
    "d_in",
    "d_sae",
    "k",
    "apply_b_dec_to_input",
    "rescale_acts_by_decoder_norm",
    "normalize_activations",
    "reshape_activations",
    "activation_fn",
    "activation_fn_str",
    "activation_fn_kwargs",
    "finetuning_scaling_factor",
    "residual_threshold",
    "max_iterations",
    "stop_on_duplicate_support",
)
IGNORED = frozenset(
    # where and how it was trained; nothing here enters the forward pass
    """metadata device dtype sae_lens_version sae_lens_training_version model_name model_class_name hook_name hook_point
    hook_layer hook_point_layer hook_head_index hook_point_head_index context_size prepend_bos dataset_path
    dataset_trust_remote_code streaming is_dataset_tokenized seqpos_slice model_from_pretrained_kwargs neuronpedia_id
    exclude_special_tokens use_cached_activations cached_activations_path expansion_factor b_dec_init_method
    l1_coefficient l1_warm_up_steps l0_coefficient l0_warm_up_steps l1_warmup_steps lp_norm lp_norm_coefficient
    use_ghost_grads ghost_grads_loss mse_loss_normalization mse_loss_normalisation noise_scale decoder_init_norm
    normalize_sae_decoder decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm
    init_encoder_as_decoder_transpose scale_sparsity_penalty_by_decoder_norm jumprelu_init_threshold
    jumprelu_bandwidth pre_act_loss_coefficient jumprelu_sparsity_loss_mode jumprelu_tanh_scale aux_loss_coefficient
    n_batches_in_buffer training_tokens finetuning_tokens store_batch_size_prompts train_batch_size_tokens
    train_batch_size finetuning_method seed verbose autocast autocast_lm compile_llm llm_compilation_mode compile_sae
    sae_compilation_mode adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps
    n_restart_cycles dead_feature_window feature_sampling_window dead_feature_threshold n_eval_batches
    eval_batch_size_prompts log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb wandb_project
    wandb_id run_name wandb_entity wandb_log_frequency eval_every_n_wandb_logs resume n_checkpoints checkpoint_path
    tokens_per_buffer topk_threshold_lr matryoshka_widths use_matryoshka_aux_loss use_sparse_activations d_out
    from_pretrained_path act_store_device from_local_checkpoint""".split()  # noqa: SIM905  # as a list it would be a page long
)


class SaeLensFormat(Format, name="SAELens", layout=f"{CONFIG} with d_in and d_sae, and {WEIGHTS}"):
    """A directory that SAELens saved."""

    files = (CONFIG, WEIGHTS)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / CONFIG).is_file() and is_mapping_with(read_json(path / CONFIG), ("d_in", "d_sae"))

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        config = read_json(path / CONFIG)
        dictionary = from_saelens(config, load_safetensors(path / WEIGHTS), path, how)
        return placed(dictionary, how, {"layout": cls.name} | _made_for(config))

    @classmethod
    def write(cls, dictionary: Dictionary, path: Path) -> None:
        save_saelens(dictionary, path)


def from_saelens(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, how: Reading = USUAL
) -> Dictionary:
    """The dictionary of a SAELens config and its tensors; `path` is for messages. Raises FormatError."""
    where = path / CONFIG
    check_keys(config, HANDLED, IGNORED, where, how.strict)
    architecture = _architecture(config, where)
    _refuse_what_changes_rows(config, where)
    sizes = {"D": positive_int(config, "d_in", where), "F": positive_int(config, "d_sae", where)}
    plain = _without_unit_scaling(tensors, path)
    found = check_tensors(plain, TENSORS[architecture], sizes, path / WEIGHTS, how.strict)
    if architecture == "matching_pursuit":
        return _pursuing(config, found, where)
    weights = {"W_enc_FD": found["W_enc"].T, "W_dec_FD": found["W_dec"], "b_dec_D": found["b_dec"]}
    # versions that do not say had no such option, and subtracted
    centred = require(config, "apply_b_dec_to_input", (True, False), "It says whether b_dec is subtracted.", where)
    shift_F = (
        torch.zeros(sizes["F"], dtype=torch.float32)
        if centred in (True, None)
        else bias_of_centre(found["W_enc"].T, found["b_dec"])
    )
    if architecture == "gated":
        weights |= {
            "b_enc_F": found["b_gate"] + shift_F,
            "log_gain_F": found["r_mag"],
            "b_magnitude_F": found["b_mag"] + found["r_mag"].exp() * shift_F,
        }
        return build("gated", {}, weights, where)
    weights["b_enc_F"] = found["b_enc"] + shift_F
    if architecture == "jumprelu":
        return build("jumprelu", {}, weights | {"threshold_F": found["threshold"]}, where)
    if architecture == "standard":
        return build("relu_l1", {}, weights, where)
    return _selecting(architecture, config, weights, found, where)


def _selecting(
    architecture: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    where: Path,
) -> Dictionary:
    """The dictionary of topk, or of batchtopk by its threshold."""
    rescaled = require(
        config, "rescale_acts_by_decoder_norm", (True, False), "It says by what features are selected.", where
    )
    weights = with_unit_atoms(weights) if rescaled else weights
    if architecture in PER_ROW:
        return build(PER_ROW[architecture], {"k": _k(config, where)}, weights, where)
    if rescaled is None:  # training has another default than inference
        raise FormatError(f"{where} lacks rescale_acts_by_decoder_norm, without which the threshold says nothing.")
    threshold_F = found["topk_threshold"].to(found["b_enc"].dtype).expand_as(found["b_enc"])
    return build("jumprelu", {}, dict(weights) | {"threshold_F": threshold_F}, where)


def _pursuing(config: Mapping[str, Any], found: Mapping[str, Tensor], where: Path) -> Dictionary:
    """Matching pursuit. A row with less than the threshold from the start has no features here, and one there."""
    again = require(config, "stop_on_duplicate_support", (True, False), "It says when a row stops.", where)
    threshold = config.get("residual_threshold", 1e-2)
    if type(threshold) not in (int, float) or not 0 <= threshold < math.inf:
        raise FormatError(f"{where}: residual_threshold is {threshold!r}; it must be a number of at least 0.")
    steps = config.get("max_iterations")
    if steps is None:  # there as many as the width
        steps = found["W_dec"].shape[1]
    steps = positive_int({"max_iterations": steps}, "max_iterations", where)
    if again is not False:
        steps = min(steps, len(found["W_dec"]) + 1)  # by then an atom has come again
    if steps > MOST_STEPS:
        raise FormatError(f"{where}: max_iterations is {steps}; at most {MOST_STEPS:,} steps are read.")
    centred = require(config, "apply_b_dec_to_input", (True, False), "It says whether b_dec is subtracted.", where)
    b_dec_D = found["b_dec"] if centred in (True, None) else torch.zeros_like(found["b_dec"])  # nor is it added there
    settings = {
        "k": min(steps, len(found["W_dec"])),
        "inference_steps": steps,
        "tolerance": float(threshold),  # in units of sqrt(V), which is 1 here
        "stop_at_repeat": again is not False,
        "aux_weight": 0,
    }
    return build("matching_pursuit", settings, {"W_dec_FD": found["W_dec"], "b_dec_D": b_dec_D}, where)


def with_unit_atoms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move the atoms' norms into the encoder: (pre * n) and W_dec / n. A zero atom keeps its zeros and never fires."""
    norm_F1 = weights["W_dec_FD"].norm(dim=1, keepdim=True)
    return dict(weights) | {
        "W_enc_FD": weights["W_enc_FD"] * norm_F1,
        "b_enc_F": weights["b_enc_F"] * norm_F1[:, 0],
        "W_dec_FD": weights["W_dec_FD"] / norm_F1.where(norm_F1 > 0, 1),
    }


def _made_for(config: Mapping[str, Any]) -> dict[str, Any]:
    """Host, point and BOS as SAELens says them: in `metadata`, or before version 6 beside the settings."""
    metadata = config.get("metadata")
    said = dict(config) | (metadata if isinstance(metadata, dict) else {})
    return {
        "host": said.get("model_name"),
        "point": said.get("hook_name", said.get("hook_point")),
        "head": said.get("hook_head_index", said.get("hook_point_head_index")),
        "prepend_bos": said.get("prepend_bos"),
        "sae_lens_version": said.get("sae_lens_version"),
    }


def _architecture(config: Mapping[str, Any], where: Path) -> str:
    """Versions before 6 have no architecture for `standard`, and say top-k as an activation function."""
    function = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    architecture = config.get("architecture") or "standard"
    if architecture == "standard" and function == "topk":
        return "topk"
    if not isinstance(architecture, str) or architecture not in TENSORS:
        raise FormatError(f"{where}: the architecture {architecture!r} is not readable; known: {', '.join(TENSORS)}.")
    if function != "relu" and not (architecture == "topk" and function == "topk"):
        raise FormatError(f"{where}: the activation function {function!r} of {architecture} is not readable.")
    return architecture


def _refuse_what_changes_rows(config: Mapping[str, Any], where: Path) -> None:
    require(
        config,
        "normalize_activations",
        ("none", False),
        "Its weights are for rows scaled row by row, or by a factor of training that is not in the file. Fold the "
        "factor in SAELens (fold_activation_norm_scaling_factor) and save again.",
        where,
    )
    require(config, "reshape_activations", ("none", "hook_z"), "It says how rows are laid out.", where)
    require(config, "finetuning_scaling_factor", (False,), "Scaled codes have no counterpart here.", where)
    if not set(_function_settings(config, where)) <= {"k"}:
        raise FormatError(f"{where}: activation_fn_kwargs has keys besides k, which are not readable.")


def _without_unit_scaling(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Old files carry a `scaling_factor` of the codes that is all ones unless it was tuned."""
    factor = tensors.get("scaling_factor")
    if factor is not None and not bool((factor == 1).all()):
        raise FormatError(f"{path / WEIGHTS}: scaling_factor is not 1; scaled codes have no counterpart here.")
    return {name: tensor for name, tensor in tensors.items() if name != "scaling_factor"}


def _k(config: Mapping[str, Any], where: Path) -> int:
    return positive_int(_function_settings(config, where) | dict(config), "k", where)


def _function_settings(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Versions before 6 have k here."""
    settings = config.get("activation_fn_kwargs") or {}
    if not isinstance(settings, dict):
        raise FormatError(f"{where}: activation_fn_kwargs is {settings!r}; it must be a mapping.")
    return settings


def save_saelens(dictionary: Dictionary, path: Path | str, host: str | None = None, point: str | None = None) -> None:
    """Write cfg.json and sae_weights.safetensors for SAELens, atomically.

    Give a dictionary for raw rows, as `saetools.load` returns it: the layout does not say how rows were scaled. `host`
    and `point` are SAELens' names of the model and hook; None: those of the spec. Raises MismatchError for kinds that
    SAELens does not compute, RunError where `path` exists or cannot be written.
    """
    architecture, settings, tensors = _for_saelens(dictionary)
    spec = dictionary.spec
    point = point or (spec.hooked_point if spec else None)
    metadata = {
        "sae_lens_version": VERSION,
        "model_name": host or (spec and spec.host),
        "hook_name": point,
        "prepend_bos": spec and spec.prepend_bos,
        "context_size": spec and spec.context_tokens,
    }
    config = {
        "architecture": architecture,
        "d_in": dictionary.d_model,
        "d_sae": dictionary.config.n_features,
        "dtype": str(dictionary.W_dec_FD.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if point and point.endswith("hook_z") else "none",
        "metadata": metadata,
    }
    matrices = {"W_dec": dictionary.W_dec_FD, "b_dec": dictionary.b_dec_D}
    matrices |= {"W_enc": dictionary.W_enc_FD.T} if dictionary.has_encoder else {}
    with committed_directory(path) as directory:
        write_json(directory / CONFIG, config | settings)
        write_tensors(directory / WEIGHTS, matrices | tensors)


def _pursues_alike(dictionary: Dictionary) -> bool:
    """Whether a matching pursuit is of the one sort that SAELens computes."""
    said = {name: setting(dictionary, name) for name in ("rule", "reselect", "coefficients")}
    return said == {"rule": "nonnegative", "reselect": True, "coefficients": "pursuit"}


def _for_saelens(dictionary: Dictionary) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(architecture, its settings, its tensors besides W_enc, W_dec and b_dec)."""
    kind, own = dictionary.kind, dictionary.state_dict()
    if keeps_by_threshold(dictionary):
        below_F = threshold_below(dictionary).expand_as(own["b_enc_F"])
        return "jumprelu", {}, {"b_enc": own["b_enc_F"], "threshold": below_F}
    if kind in KEEPS_K or kind == "abs_topk":
        settings = {"k": setting(dictionary, "k"), "rescale_acts_by_decoder_norm": False}
        return "abstopk" if kind == "abs_topk" else "topk", settings, {"b_enc": own["b_enc_F"]}
    if kind in POSITIVE:
        return "standard", {}, {"b_enc": own["b_enc_F"]}
    if kind == "jumprelu":
        return "jumprelu", {}, {"b_enc": own["b_enc_F"], "threshold": own["threshold_F"]}
    if kind == "gated":
        return "gated", {}, {"b_gate": own["b_enc_F"], "r_mag": own["log_gain_F"], "b_mag": own["b_magnitude_F"]}
    if kind == "matching_pursuit" and _pursues_alike(dictionary):
        at_inference = setting(dictionary, "inference_tolerance")
        tolerance = setting(dictionary, "tolerance") if at_inference is None else at_inference
        settings = {
            "residual_threshold": tolerance * float(dictionary.total_variance) ** 0.5,
            "max_iterations": setting(dictionary, "inference_steps") or setting(dictionary, "k"),
            "stop_on_duplicate_support": setting(dictionary, "stop_at_repeat"),
        }
        return "matching_pursuit", settings, {}
    known = sorted({*KEEPS_K, *POSITIVE, *THRESHOLD, "jumprelu", "gated", "abs_topk", "matching_pursuit (nonnegative)"})
    raise MismatchError(
        f"SAELens has no architecture that computes what this dictionary of kind {kind} does. Kinds that can be "
        f"written for it: {', '.join(known)}."
    )
