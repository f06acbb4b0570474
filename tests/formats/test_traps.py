"""Traps of the other libraries' layouts that no golden file shows by itself. The rest, and where each is tested:

1 orientation: test_golden.py (D != F), test_peer_defects.py (D = F); 2 whether b_dec is subtracted, 3 rescaling by the
decoder's norm: test_golden.py; 4 the version in an export: test_peer_defects.py; 5 choices over a batch are exported by
their threshold: test_export.py; 6 > or >=: here, test_export.py; 7 k as a tensor: here; 8 scales of rows: here,
test_llama_scope.py; 9 names of points: here, test_peer_defects.py; 10 bf16 unasked: test_peer_defects.py; 11 pickles:
test_pt.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import saetools
from saetools.errors import FormatError
from saetools.formats.dictionary_learning import from_dictionary_learning
from saetools.formats.load import save_as
from saetools.formats.saelens import save_saelens
from saetools.records import PointSpec

GOLDEN = Path(__file__).parent / "golden"


def halves(d: int, f: int) -> dict[str, Tensor]:
    """Multiples of a half, whose sums of products are exact: a pre-activation can be a threshold to the last bit."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (d, f), "W_dec": (f, d), "b_enc": (f,), "b_dec": (d,)}
    return {name: torch.randint(-4, 5, shape, generator=draw) / 2 for name, shape in shapes.items()}


@pytest.mark.parametrize("layout", ["SAELens", "Gemma Scope", "dictionary_learning", "Llama Scope"])
def test_6_a_value_at_the_threshold_is_silent(tmp_path: Path, layout: str) -> None:
    """They keep pre > threshold: not what is equal to it."""
    w, x_ND = halves(4, 9), torch.randint(-3, 4, (50, 4), generator=torch.Generator().manual_seed(1)).float()
    w["b_dec"] = torch.zeros(4) if layout != "Gemma Scope" else w["b_dec"]
    threshold = torch.full((9,), 1.5)
    if layout == "SAELens":
        config = {"architecture": "jumprelu", "d_in": 4, "d_sae": 9, "apply_b_dec_to_input": True}
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        save_file(w | {"threshold": threshold}, tmp_path / "sae_weights.safetensors")
    elif layout == "Gemma Scope":
        np.savez(tmp_path / "params.npz", **{name: t.numpy() for name, t in (w | {"threshold": threshold}).items()})
    elif layout == "Llama Scope":  # the width's root over the norm is 1
        config = {"d_model": 4, "d_sae": 9, "jump_relu_threshold": 1.5, "dataset_average_activation_norm": {"in": 2.0}}
        (tmp_path / "hyperparams.json").write_text(json.dumps(config))
        (tmp_path / "checkpoints").mkdir()
        named = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
        named["decoder.bias"] = w["b_dec"]
        save_file({n: t.contiguous() for n, t in named.items()}, tmp_path / "checkpoints" / "final.safetensors")
    if layout == "dictionary_learning":
        stored: dict[str, Any] = {"trainer": {"dict_class": "MatryoshkaBatchTopKSAE", "k": 2}}
        dictionary = from_dictionary_learning(stored, w | {"threshold": threshold[0]}, tmp_path, tmp_path)
    else:
        dictionary = saetools.load(tmp_path)
    pre_NF = x_ND @ w["W_enc"] + w["b_enc"]
    assert (pre_NF == 1.5).any()
    assert torch.equal(dictionary.encode(x_ND).to_dense() != 0, pre_NF > 1.5)


def test_7_k_is_a_tensor_that_the_config_must_not_contradict(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {"encoder.weight": torch.randn(9, 5, generator=draw), "decoder.weight": torch.randn(5, 9, generator=draw)}
    tensors |= {"encoder.bias": torch.zeros(9), "b_dec": torch.zeros(5), "threshold": torch.tensor(-1.0)}
    stored = tensors | {"k": torch.tensor(3, dtype=torch.int32)}

    def read(said: dict[str, Any], held: dict[str, Tensor]) -> int:
        config = {"trainer": {"dict_class": "AutoEncoderTopK"} | said}
        return from_dictionary_learning(config, held, tmp_path, tmp_path).config.model_dump()["k"]

    assert read({}, stored) == read({"k": 3}, stored) == read({"k": 3}, tensors) == 3
    with pytest.raises(FormatError, match="k is 4 in the config and 3 in the weights"):
        read({"k": 4}, stored)
    with pytest.raises(FormatError, match="no whole number"):
        read({}, tensors | {"k": torch.tensor(3.0)})


def test_8_what_is_exported_is_for_raw_rows(tmp_path: Path) -> None:
    """A scale that was measured in training is folded on loading, so that no export depends on it."""
    from saetools.formats.native import load_unfolded, save_dictionary

    made = saetools.load(GOLDEN / "saelens-topk-f32")
    save_dictionary(made, tmp_path / "run", None, scale=0.25)
    dictionary = saetools.load(tmp_path / "run")
    x_ND = load_file(GOLDEN / "saelens-topk-f32" / "expected.safetensors")["x"]
    for name, file in (("saelens", "sae_weights.safetensors"), ("sparsify", "sae.safetensors")):
        save_as(dictionary, tmp_path / name, name)
        assert torch.equal(load_file(tmp_path / name / file)["b_dec"], made.b_dec_D / 0.25)
        torch.testing.assert_close(saetools.load(tmp_path / name)(x_ND), made(x_ND * 0.25) / 0.25)
    assert load_unfolded(tmp_path / "run").record.scale == 0.25


@pytest.mark.parametrize(
    ("ours", "theirs", "reshape"),
    [
        ("blocks.2.hook_out", "blocks.2.hook_resid_post", "none"),
        ("blocks.11.hook_in", "blocks.11.hook_resid_pre", "none"),
        ("blocks.0.mlp.hook_out", "blocks.0.hook_mlp_out", "none"),
        ("blocks.3.attn.o.hook_in", "blocks.3.attn.hook_z", "hook_z"),
        ("ln_final.hook_out", "ln_final.hook_out", "none"),
    ],
)
def test_9_points_are_exported_by_the_names_that_their_library_has(
    tmp_path: Path, ours: str, theirs: str, reshape: str
) -> None:
    """SAELens looks hooks up in a HookedTransformer; at hook_z it has to be told that heads are flattened."""
    dictionary = saetools.load(GOLDEN / "sparsify-f32")
    dictionary.spec = PointSpec(host="gpt2", point=ours, d_model=6)
    save_saelens(dictionary, tmp_path / "d")
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    assert (config["metadata"]["hook_name"], config["reshape_activations"]) == (theirs, reshape)
    assert saetools.load(tmp_path / "d").provenance["point"] == theirs


def test_10_another_dtype_is_asked_for() -> None:
    """By dtype=, of weights and biases; half precision on disk is widened, since folding in it would round again."""
    for name, case in json.loads((GOLDEN / "golden.json").read_text())["cases"].items():
        if name.endswith("bf16") and "source" not in case and not name.startswith("dl-"):
            assert saetools.load(GOLDEN / name).W_dec_FD.dtype == torch.float32
    assert saetools.load(GOLDEN / "sparsify-bf16", dtype=torch.bfloat16).W_dec_FD.dtype == torch.bfloat16
