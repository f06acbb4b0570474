"""sparsify's layout: W_dec is [F, D] already, b_dec is subtracted, and what is not a plain SAE is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saetools
from saetools.errors import FormatError

D, F, K = 6, 12, 4
CONFIG: dict[str, Any] = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": F,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}


def tensors(d: int = D, f: int = F) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (f, d), "encoder.bias": (f,), "W_dec": (f, d), "b_dec": (d,)}
    return {name: torch.randn(*shape, generator=draw) * 1.5 for name, shape in shapes.items()}


def write(path: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(config))
    save_file(weights, path / "sae.safetensors")
    return path


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("f", [F, D])  # where F = D a wrong transpose passes every check of shapes
def test_codes_and_reconstructions(tmp_path: Path, stored: torch.dtype, f: int) -> None:
    weights = {name: value.to(stored) for name, value in tensors(f=f).items()}
    dictionary = saetools.load(write(tmp_path / "d", CONFIG | {"num_latents": f}, weights))
    x_ND = torch.randn(30, D, generator=torch.Generator().manual_seed(1)) + 0.5
    w = {name: value.double() for name, value in weights.items()}
    pre = (x_ND.double() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    values, places = pre.relu().topk(K, dim=1)
    code_NF = torch.zeros_like(pre).scatter(1, places, values)
    recon_ND = code_NF @ w["W_dec"] + w["b_dec"]
    assert (dictionary.encode(x_ND).to_dense() - code_NF).abs().max() <= 1e-6 * code_NF.max()
    assert (dictionary(x_ND) - recon_ND).abs().max() <= 1e-6 * recon_ND.abs().max()


def test_no_number_of_latents_means_times_the_width(tmp_path: Path) -> None:
    source = write(tmp_path / "d", CONFIG | {"num_latents": 0, "expansion_factor": 2}, tensors())
    assert saetools.load(source).config.n_features == 2 * D


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "transcoder": ({"transcode": True}, "transcode is True.*their own input"),
    "skip": ({"skip_connection": True}, "skip_connection is True"),
    "groups": ({"activation": "groupmax"}, "activation is 'groupmax'"),
    "signed": ({"signed": True}, "signed is True"),
    "unknown": ({"colour": "red"}, "unknown key 'colour'"),
    "latents": ({"num_latents": F + 1}, r"W_dec has shape \[12, 6\]"),
    "k": ({"k": 0}, "k is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_configs(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(FormatError, match=message):
        saetools.load(write(tmp_path / "d", CONFIG | change, tensors()))


def test_refused_weights(tmp_path: Path) -> None:
    good = tensors()
    with pytest.raises(FormatError, match="unknown tensor 'W_skip'"):
        saetools.load(write(tmp_path / "d", CONFIG, good | {"W_skip": torch.ones(D, D)}))
    with pytest.raises(FormatError, match=r"W_dec has shape \[6, 12\]"):
        saetools.load(write(tmp_path / "d", CONFIG, good | {"W_dec": good["W_dec"].T.contiguous()}))
    file = write(tmp_path / "d", CONFIG, good) / "sae.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated"):
        saetools.load(tmp_path / "d")
