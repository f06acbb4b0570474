"""Llama Scope's layout, made by hand, against its formula on scaled rows; transcoders and other functions refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saetools
from saetools.errors import FormatError

D, F = 6, 12
CONFIG: dict[str, Any] = {
    "hook_point_in": "blocks.3.hook_resid_post",
    "hook_point_out": "blocks.3.hook_resid_post",
    "d_model": D,
    "d_sae": F,
    "expansion_factor": 2,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.5,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 1.3, "out": 1.3},
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "sparsity_include_decoder_norm": False,
    "top_k": 50,
}
SCALE = math.sqrt(D) / 1.3


def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "decoder.bias": (D,)}
    return {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}


def write(path: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    (path / "hyperparams.json").write_text(json.dumps(config))
    save_file(weights, path / "checkpoints" / "final.safetensors")
    return path


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norms", [False, True])
def test_codes_and_reconstructions(tmp_path: Path, stored: torch.dtype, norms: bool) -> None:
    weights = {name: value.to(stored) for name, value in tensors().items()}
    dictionary = saetools.load(write(tmp_path / "d", CONFIG | {"sparsity_include_decoder_norm": norms}, weights))
    x_ND = torch.randn(50, D, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    w = {name: value.double() for name, value in weights.items()}
    pre = SCALE * x_ND.double() @ w["encoder.weight"].T + w["encoder.bias"]
    compared = pre * w["decoder.weight"].norm(dim=0) if norms else pre
    code_NF = pre.relu() * (compared > SCALE * 0.5)
    recon_ND = (code_NF @ w["decoder.weight"].T + w["decoder.bias"]) / SCALE
    assert ((pre > 0) & (code_NF == 0)).any()
    assert (dictionary.encode(x_ND).to_dense() * SCALE - code_NF).abs().max() <= 1e-6 * code_NF.max()
    assert (dictionary(x_ND) - recon_ND).abs().max() <= 1e-6 * recon_ND.abs().max()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"colour": 1}, "unknown key 'colour'"),
    "transcoder": ({"hook_point_out": "blocks.3.hook_mlp_out"}, "transcoders are not readable"),
    "function": ({"act_fn": "topk"}, "act_fn is 'topk'"),
    "row norm": ({"norm_activation": "token-wise"}, "norm_activation is 'token-wise'"),
    "no norm": ({"dataset_average_activation_norm": None}, r"norm\.in is None"),
    "threshold": ({"jump_relu_threshold": -1}, "jump_relu_threshold is -1"),
    "width": ({"d_model": D + 1}, r"encoder.weight has shape \[12, 6\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(FormatError, match=message):
        saetools.load(write(tmp_path / "d", CONFIG | change, tensors()))


def test_damaged(tmp_path: Path) -> None:
    file = write(tmp_path / "d", CONFIG, tensors()) / "checkpoints" / "final.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"final\.safetensors"):
        saetools.load(tmp_path / "d")
