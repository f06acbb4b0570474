"""overcomplete: a .pt file of a whole model (torch.save(sae)) or of its state dict.

    linear encoder: pre = x W^T + b, nothing subtracted;  W is encoder.final_block.0, encoder.weight, or tied to D
    TopKSAE: the k largest of ReLU(pre) in each row
    BatchTopKSAE: those >= running_threshold;  JumpSAE: those >= exp(thresholds)
    MpSAE: k steps of matching pursuit of x, by the largest correlation whatever its sign
    recon = code D;  D = exp(multiplier) * normalised _weights, as fused by .eval()                        D [F, D]

A whole model becomes an inert record of its tensors and settings in the sandbox; none of its code runs. A state dict
does not say class, k and normalisation: JumpSAE is told by its thresholds, others need k= of load, and its weights must
have unit norm, as the default normalisation leaves them. Encoders that are not linear, OMP and quantised codes are
refused.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError
from saetools.formats.base import USUAL, Format, Reading
from saetools.formats.foreign import build, check_tensors, k_of, placed, positive_int
from saetools.formats.pt import PtContent, mentions, read_pt

WEIGHTS, FUSED, MULTIPLIER = "dictionary._weights", "dictionary._fused_dictionary", "dictionary.multiplier"
ENCODERS = {  # name of the weight: of the bias
    "encoder.final_block.0.weight": "encoder.final_block.0.bias",
    "encoder.weight": "encoder.bias",
}
TIED = "encoder.tied_to."
CLASSES = {"TopKSAE": "topk", "RATopKSAE": "topk", "BatchTopKSAE": "batch", "JumpSAE": "jump", "RAJumpSAE": "jump"}
CLASSES |= {"MpSAE": "pursuit", "SAE": "relu"}
UNIT = 1e-3


class OvercompleteFormat(
    Format, name="overcomplete", layout="a .pt file of an overcomplete SAE or its state dict (needs allow_pt)"
):
    """One .pt file of a sparse autoencoder of overcomplete."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return mentions(path, WEIGHTS) or mentions(path, "_weights", "_fused_dictionary")

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        content = read_pt(path, how.allow_pt, cls.name)
        return placed(from_overcomplete(content, path, how), how, {"layout": cls.name})


def from_overcomplete(content: PtContent, path: Path, how: Reading = USUAL) -> Dictionary:
    """The dictionary of a model's or state dict's content; `path` is for messages. Raises FormatError."""
    tensors, values = content.tensors, content.values
    kind = _kind(content, path)
    if values.get("dropout") is not None:
        raise FormatError(f"{path}: its dropout is {values['dropout']}; call .eval() before saving.")
    atoms_FD = _atoms(content, path)
    weights = {"W_dec_FD": atoms_FD, "b_dec_D": torch.zeros_like(atoms_FD[0])}
    if kind == "pursuit":
        _none_left(content, path, how, {})
        k = _count(values, "k", how, path)
        settings = {"k": k, "rule": "signed", "aux_weight": 0}
        return build("matching_pursuit", settings, weights, path)
    weights |= _encoder(content, atoms_FD, path, how)
    if kind == "relu":
        return build("relu_l1", {}, weights, path)
    if kind == "topk":
        return build("topk", {"k": _count(values, "top_k", how, path)}, weights, path)
    if kind == "batch":
        threshold = tensors.get("running_threshold")
        if threshold is None or threshold.numel() != 1:
            raise FormatError(f"{path}: its running_threshold is not set; what inference keeps is unknown.")
        k = min(_count(values, "top_k", how, path), len(atoms_FD))
        return build("mutual_choice", {"k": k}, weights | {"threshold": threshold.float().reshape(())}, path)
    reached_F = tensors["thresholds"].float().exp()  # theirs keeps pre >= t, ours pre > t
    below_F = torch.nextafter(reached_F, torch.zeros_like(reached_F))
    return build("jumprelu", {}, weights | {"threshold_F": below_F}, path)


def _kind(content: PtContent, path: Path) -> str:
    """What is computed: by the class of a whole model; by the tensors of a state dict."""
    if "" in content.classes:
        name = content.classes[""].rsplit(".", 1)[-1]
        if name not in CLASSES:
            raise FormatError(f"{path}: {name} has no counterpart here. Readable are {', '.join(CLASSES)}.")
        return CLASSES[name]
    if "thresholds" in content.tensors:
        return "jump"
    return "topk" if any(name.startswith("encoder.") for name in content.tensors) else "pursuit"


def _atoms(content: PtContent, path: Path) -> Tensor:
    """D as it is after .eval()."""
    tensors = content.tensors
    if FUSED in tensors and content.values.get("dictionary.training") is False:
        return check_tensors({FUSED: tensors[FUSED]}, {FUSED: "FD"}, {}, path, True)[FUSED]
    if WEIGHTS not in tensors:
        raise FormatError(f"{path}: its dictionary was not fused. Call .eval() before saving.")
    found = check_tensors({WEIGHTS: tensors[WEIGHTS]}, {WEIGHTS: "FD"}, {}, path, True)[WEIGHTS]
    off = (found.norm(dim=1) - 1).abs().max()
    if not off <= UNIT:
        raise FormatError(
            f"{path}: its atoms are not of unit norm (off by {off:.3g}), so another normalisation than the default was "
            "used, which these tensors do not say. Call .eval() and save the whole model: torch.save(sae, file)."
        )
    unit_FD = found / (found.norm(dim=1, keepdim=True) + 1e-8)
    return unit_FD * tensors.get(MULTIPLIER, torch.zeros((), dtype=torch.float32)).float().exp()


def _encoder(content: PtContent, atoms_FD: Tensor, path: Path, how: Reading) -> dict[str, Tensor]:
    n_features, d_model = atoms_FD.shape
    named = {name: t for name, t in content.tensors.items() if name.startswith("encoder.") and TIED not in name}
    weight = next((name for name in ENCODERS if name in named), None)
    bias = ENCODERS[weight] if weight else "encoder.bias"
    if weight is None and not any(name.startswith(TIED) for name in content.tensors):
        raise FormatError(f"{path}: its encoder ({', '.join(named) or 'no tensors'}) is not linear, and not readable.")
    shapes = ({weight: "FD"} if weight else {}) | ({bias: "F"} if bias in named else {})
    found = check_tensors(named, shapes, {"F": n_features, "D": d_model}, path, how.strict)
    _none_left(content, path, how, shapes)
    W_enc_FD = found[weight] if weight else atoms_FD.clone()
    return {"W_enc_FD": W_enc_FD, "b_enc_F": found.get(bias, W_enc_FD.new_zeros(n_features))}


def _none_left(content: PtContent, path: Path, how: Reading, used: dict[str, str]) -> None:
    """Refuse tensors that were neither used nor are known to be without effect on inference."""
    known = {*used, WEIGHTS, FUSED, MULTIPLIER, "thresholds", "running_threshold", "bandwidth"}
    known |= {f"dictionary.{name}" for name in ("W", "C", "Relax", "delta")}  # of archetypal atoms, fused
    left = {name: t for name, t in content.tensors.items() if name not in known and not name.startswith(TIED)}
    check_tensors(left, {}, {}, path, how.strict)


def _count(values: dict[str, Any], name: str, how: Reading, path: Path) -> int:
    if values.get(name) is not None:
        return positive_int(values, name, path)
    return k_of({}, how, path, "overcomplete's state dicts")
