"""SAELens' layout: files made by hand from the documented keys and shapes, against its formulas in dense torch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import saetools
from saetools.errors import FormatError

D, F, K = 6, 11, 3
X_ND = torch.randn(40, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 0.3
BASE = {"d_in": D, "d_sae": F, "normalize_activations": "none", "reshape_activations": "none", "dtype": "float32"}
NEW: dict[str, Any] = BASE | {"metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.0.hook_resid_post"}}


def tensors(architecture: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights with a decoder far from unit norm and a b_dec far from zero."""
    draw = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,)}
    biases = ("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",)
    made = {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}
    made |= {name: torch.randn(F, generator=draw) * 0.5 for name in biases}
    made["W_dec"] *= torch.linspace(0.3, 3, F)[:, None]
    if architecture == "jumprelu":
        made["threshold"] = torch.rand(F, generator=draw) * 2
    if architecture == "batchtopk":
        made["topk_threshold"] = torch.tensor(1.5, dtype=torch.float64)
    return {name: value if name == "topk_threshold" else value.to(dtype) for name, value in made.items()}


def write(path: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(config))
    save_file(weights, path / "sae_weights.safetensors")
    return path


def expected(w: dict[str, Tensor], architecture: str, centred: bool, rescaled: bool) -> tuple[Tensor, Tensor]:
    """(code, recon) by the documented formulas."""
    w = {name: value.double() for name, value in w.items()}
    product = (X_ND - w["b_dec"] * centred) @ w["W_enc"]
    if architecture == "gated":
        code = torch.relu(product * w["r_mag"].exp() + w["b_mag"]) * (product + w["b_gate"] > 0)
        return code, code @ w["W_dec"] + w["b_dec"]
    pre = product + w["b_enc"]
    norm = w["W_dec"].norm(dim=1) if rescaled else torch.ones(F)
    if architecture == "topk":
        values, places = (pre * norm).topk(K, dim=1)
        code = torch.zeros_like(pre).scatter(1, places, values.relu())
    elif architecture == "batchtopk":
        code = (pre * norm).relu() * (pre * norm > 1.5)
    else:
        code = pre.relu() * (pre > w["threshold"] if architecture == "jumprelu" else 1)
    return code, (code / norm) @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    "architecture", ["standard", "topk", "topk rescaled", "jumprelu", "gated", "batchtopk", "batchtopk rescaled"]
)
def test_codes_and_reconstructions(tmp_path: Path, architecture: str, centred: bool, stored: torch.dtype) -> None:
    architecture, _, rescaled = architecture.partition(" ")
    config = NEW | {"architecture": architecture, "apply_b_dec_to_input": centred}
    if architecture in ("topk", "batchtopk"):
        config |= {"k": K, "rescale_acts_by_decoder_norm": bool(rescaled)}
    weights = tensors(architecture, stored)
    code_NF, recon_ND = expected(weights, architecture, centred, bool(rescaled))
    dictionary = saetools.load(write(tmp_path / "d", config, weights))
    assert dictionary.W_dec_FD.dtype == torch.float32
    assert dictionary.provenance["point"] == "blocks.0.hook_resid_post"
    code = dictionary.encode(X_ND.float())
    scale = code_NF.abs().max()
    assert 0 < (code_NF > 0).double().mean() < 1
    assert (code.to_dense() - code_NF).abs().max() <= 1e-6 * scale
    assert (dictionary(X_ND.float()) - recon_ND).abs().max() <= 1e-6 * recon_ND.abs().max()


def test_rescaling_changes_what_is_selected() -> None:
    weights = tensors("topk")
    plain, rescaled = (expected(weights, "topk", True, flag)[0] > 0 for flag in (False, True))
    assert (plain != rescaled).any()


@pytest.mark.parametrize("said", [{"architecture": "standard"}, {}])
def test_versions_before_6_say_topk_as_an_activation_function(tmp_path: Path, said: dict[str, str]) -> None:
    old = BASE | said | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": False}
    old |= {
        "hook_name": "blocks.1.hook_mlp_out",
        "hook_layer": 1,
        "prepend_bos": True,
        "finetuning_scaling_factor": False,
    }
    weights = tensors("topk")
    dictionary = saetools.load(write(tmp_path / "d", old, weights | {"scaling_factor": torch.ones(F)}))
    assert dictionary.kind == "topk"
    assert dictionary.provenance == {"layout": "SAELens", "point": "blocks.1.hook_mlp_out", "prepend_bos": True}
    assert (dictionary(X_ND.float()) - expected(weights, "topk", False, False)[1]).abs().max() < 1e-5
    with pytest.raises(FormatError, match="scaling_factor is not 1"):
        saetools.load(write(tmp_path / "d", old, weights | {"scaling_factor": torch.full((F,), 2.0)}))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"colour": 1}, "unknown key 'colour'"),
    "row norm": ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
    "unsaid scale": ({"normalize_activations": "expected_average_only_in"}, "not in the file"),
    "architecture": ({"architecture": "temporal"}, "'temporal' is not readable; known: standard"),
    "activation": ({"activation_fn_str": "tanh-relu"}, "'tanh-relu' of standard"),
    "centring": ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1"),
    "width": ({"d_in": D + 1}, r"W_dec has shape \[11, 6\]; expected is \[F, D\] with D = 7"),
    "features of text": ({"d_sae": "11"}, "d_sae is '11'"),
    "topk without k": ({"architecture": "topk"}, "k is None"),
    "k above F": ({"architecture": "topk", "k": F + 1}, "k = 12 is more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_configs(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    write(tmp_path / "d", {"architecture": "standard"} | NEW | change, tensors("standard"))
    with pytest.raises(FormatError, match=message) as error:
        saetools.load(tmp_path / "d")
    assert str(tmp_path) in str(error.value)


def test_refused_weights(tmp_path: Path) -> None:
    config, good = NEW | {"architecture": "standard"}, tensors("standard")
    for change, message in (
        ({"extra": torch.ones(1)}, "unknown tensor 'extra'"),
        ({"W_enc": good["W_enc"].T.contiguous()}, r"W_enc has shape \[11, 6\]"),
        ({"b_enc": torch.ones(F, dtype=torch.int32)}, "b_enc is torch.int32"),
    ):
        with pytest.raises(FormatError, match=message):
            saetools.load(write(tmp_path / "d", config, good | change))
    with pytest.raises(FormatError, match="lacks rescale_acts_by_decoder_norm"):
        saetools.load(write(tmp_path / "b", NEW | {"architecture": "batchtopk"}, tensors("batchtopk")))
    with pytest.raises(FormatError, match="lacks the tensor 'b_dec'"):
        saetools.load(write(tmp_path / "d", config, {n: t for n, t in good.items() if n != "b_dec"}))


def test_damaged_files(tmp_path: Path) -> None:
    file = write(tmp_path / "d", NEW | {"architecture": "standard"}, tensors("standard")) / "sae_weights.safetensors"
    whole = file.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="sae_weights"):
            saetools.load(tmp_path / "d")
    file.unlink()
    with pytest.raises(FormatError, match="sae_weights"):
        saetools.load(tmp_path / "d")
    (tmp_path / "d" / "cfg.json").write_text('{"d_in": 6,')
    with pytest.raises(FormatError, match=r"cfg\.json"):
        saetools.load(tmp_path / "d")
