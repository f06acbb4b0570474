"""Write dictionaries in the layouts of SAELens and sparsify. What the other side cannot compute is refused.

A kind whose inference keeps all from a threshold on (pre >= t) becomes SAELens' jumprelu, which keeps pre > t: the
written threshold is the next smaller number, so that exactly the same features fire. Give a dictionary for raw rows,
as `saetools.load` returns it: neither layout says how rows were scaled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saetools.atomic import committed_directory, write_json, write_tensors
from saetools.dictionaries.base import Dictionary
from saetools.errors import MismatchError
from saetools.formats import saelens, sparsify

SAELENS_VERSION = "6.54.12"
"""The version whose layout is written: files that name none are read there by the rules of before 6.0."""

PER_ROW = ("topk", "variational")
POSITIVE = ("relu_l1", "p_anneal")
THRESHOLD = {
    "topk": "threshold",  # where inference is set to it
    "mutual_choice": "threshold",
    "matryoshka": "threshold",
    "feature_choice": "threshold_F",
}
"""The buffer with what inference compares pre-activations with, by kind."""


def save_saelens(dictionary: Dictionary, path: Path | str, host: str | None = None, point: str | None = None) -> None:
    """Write cfg.json and sae_weights.safetensors for SAELens, atomically.

    `host` and `point` are SAELens' names of the model and hook; None: ours. Raises MismatchError for kinds that SAELens
    does not compute, RunError where `path` exists or cannot be written.
    """
    architecture, settings, tensors = _for_saelens(dictionary)
    spec = dictionary.spec
    metadata = {
        "sae_lens_version": SAELENS_VERSION,
        "model_name": host or (spec and spec.host),
        "hook_name": point or (spec and spec.point),
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
        "reshape_activations": "none",
        "metadata": metadata,
    }
    affine = {"W_enc": dictionary.W_enc_FD.T, "W_dec": dictionary.W_dec_FD, "b_dec": dictionary.b_dec_D}
    _write(path, saelens.CONFIG, config | settings, saelens.WEIGHTS, affine | tensors)


def save_sparsify(dictionary: Dictionary, path: Path | str) -> None:
    """Write cfg.json and sae.safetensors for sparsify, atomically: kinds that keep the k largest of each row.

    Raises MismatchError for all others, RunError where `path` exists or cannot be written.
    """
    if dictionary.kind not in PER_ROW or _keeps_by_threshold(dictionary):
        raise MismatchError(
            f"sparsify computes the k largest of each row and nothing else; this is a {dictionary.kind} dictionary. "
            f"Kinds that it computes: {', '.join(PER_ROW)}, with k features per row."
        )
    norms_F = dictionary.W_dec_FD.detach().float().norm(dim=1)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, dictionary.config.n_features // dictionary.d_model),
        "normalize_decoder": bool(((norms_F - 1).abs() < 1e-2).all()),  # of training there: not if it would change it
        "num_latents": dictionary.config.n_features,
        "k": _setting(dictionary, "k"),
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
    _write(path, sparsify.CONFIG, config, sparsify.WEIGHTS, tensors)


def _for_saelens(dictionary: Dictionary) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(architecture, its settings, its tensors besides W_enc, W_dec and b_dec)."""
    kind, own = dictionary.kind, dictionary.state_dict()
    if kind in THRESHOLD and _keeps_by_threshold(dictionary):
        reached = own[THRESHOLD[kind]].to(own["b_enc_F"].dtype).expand_as(own["b_enc_F"])
        below_F = torch.nextafter(reached, torch.full_like(reached, -torch.inf))
        return "jumprelu", {}, {"b_enc": own["b_enc_F"], "threshold": below_F}
    if kind in PER_ROW:
        settings = {"k": _setting(dictionary, "k"), "rescale_acts_by_decoder_norm": False}
        return "topk", settings, {"b_enc": own["b_enc_F"]}
    if kind in POSITIVE:
        return "standard", {}, {"b_enc": own["b_enc_F"]}
    if kind == "jumprelu":
        return "jumprelu", {}, {"b_enc": own["b_enc_F"], "threshold": own["threshold_F"]}
    if kind == "gated":
        return "gated", {}, {"b_gate": own["b_enc_F"], "r_mag": own["log_gain_F"], "b_mag": own["b_magnitude_F"]}
    known = sorted({*PER_ROW, *POSITIVE, *THRESHOLD, "jumprelu", "gated"})
    raise MismatchError(
        f"SAELens has no architecture that computes what a {kind} dictionary does. Kinds that can be written for it: "
        f"{', '.join(known)}."
    )


def _keeps_by_threshold(dictionary: Dictionary) -> bool:
    """Whether inference keeps all above a learnt threshold."""
    return THRESHOLD.get(dictionary.kind) in dictionary.state_dict()


def _setting(dictionary: Dictionary, name: str) -> Any:
    return dictionary.config.model_dump()[name]


def _write(path: Path | str, config_name: str, config: Any, weights_name: str, tensors: Mapping[str, Tensor]) -> None:
    with committed_directory(path) as directory:
        write_json(directory / config_name, config)
        write_tensors(directory / weights_name, tensors)
