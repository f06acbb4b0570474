"""Defects that other libraries' importers and exporters had, as tests of ours. Named after what went wrong there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import saetools
from saetools.errors import FormatError
from saetools.formats.load import save_as
from saetools.formats.native import save_dictionary
from saetools.formats.saelens import save_saelens
from saetools.records import PointSpec

GOLDEN = Path(__file__).parent / "golden"


def copy(name: str, target: Path, **changes: object) -> Path:
    """A golden checkpoint of sparsify or SAELens with some settings changed."""
    target.mkdir()
    for file in (GOLDEN / name).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "cfg.json").read_text())
    (target / "cfg.json").write_text(json.dumps(config | changes))
    return target


def test_v7_sparsify_decoder_is_not_transposed() -> None:
    """SAELens' importer of sparsify transposes a decoder that is [F, D] already."""
    stored = load_file(GOLDEN / "sparsify-f32" / "sae.safetensors")
    assert torch.equal(saetools.load(GOLDEN / "sparsify-f32").W_dec_FD, stored["W_dec"])


def test_v7_a_square_sparsify_checkpoint_is_not_transposed_either(tmp_path: Path) -> None:
    """Where D = F nothing in the shapes says which way round a matrix is."""
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(7, 7, generator=draw) for name in ("encoder.weight", "W_dec")}
    tensors |= {name: torch.randn(7, generator=draw) for name in ("encoder.bias", "b_dec")}
    save_file(tensors, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 7, "k": 2, "num_latents": 7, "activation": "topk"}))
    x_ND = torch.randn(20, 7, generator=draw)
    pre = (x_ND - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"]
    values, places = pre.topk(2, dim=1)
    code = torch.zeros_like(pre).scatter(1, places, values.relu())
    torch.testing.assert_close(saetools.load(tmp_path)(x_ND), code @ tensors["W_dec"] + tensors["b_dec"])


@pytest.mark.parametrize("normalised", [True, False])
def test_v7_sparsify_subtracts_b_dec_whatever_normalize_decoder_says(tmp_path: Path, normalised: bool) -> None:
    """SAELens' importer takes `not normalize_decoder` for centring."""
    path = copy("sparsify-f32", tmp_path / "d", normalize_decoder=normalised)
    expected = load_file(path / "expected.safetensors")
    torch.testing.assert_close(saetools.load(path)(expected["x"]), expected["recon"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sparsify-f32", "llama-scope-f32"])
def test_v7_nothing_is_rounded_to_bf16_unasked(name: str) -> None:
    """SAELens loads both layouts in bf16 unless told otherwise."""
    dictionary = saetools.load(GOLDEN / name)
    assert dictionary.W_dec_FD.dtype == torch.float32
    assert not torch.equal(dictionary.W_dec_FD, dictionary.W_dec_FD.bfloat16().float())


def test_v7_points_keep_the_name_that_the_file_gives(tmp_path: Path) -> None:
    """SAELens' importer calls every sparsify hook point a residual stream."""
    path = copy("sparsify-f32", tmp_path / "layers.3.mlp")
    assert saetools.load(path).provenance["point"] == "layers.3.mlp"


def test_what_a_run_saves_loads_again(tmp_path: Path) -> None:
    """SAELens#168, #25, #193; dictionary_learning#47; sparsify#115: saved models that cannot be loaded."""
    dictionary = saetools.load(GOLDEN / "saelens-gated-f32")
    save_as(dictionary, tmp_path / "own", "saetools")
    save_as(saetools.load(tmp_path / "own"), tmp_path / "theirs", "saelens")
    again = saetools.load(tmp_path / "theirs")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in dictionary.state_dict().items())


def test_dictionary_learning_matryoshka_is_exported(tmp_path: Path) -> None:
    """dictionary_learning has no way to write its Matryoshka dictionaries for others."""
    from saetools.dictionaries.base import make_dictionary
    from saetools.dictionaries.matryoshka import Matryoshka

    dictionary = make_dictionary(Matryoshka.configure(n_features=32, k=6), 7).eval()
    dictionary.state_dict()["threshold"].fill_(0.4)
    save_as(dictionary, tmp_path / "d", "SAELens")
    x_ND = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(saetools.load(tmp_path / "d").encode(x_ND).to_dense(), dictionary.encode(x_ND).to_dense())


def test_dictionary_learning_a_threshold_that_was_never_learnt_is_not_used(tmp_path: Path) -> None:
    """dictionary_learning stores -1 for it, and its BatchTopK then keeps everything that is positive."""
    from saetools.formats.dictionary_learning import from_dictionary_learning

    draw = torch.Generator().manual_seed(0)
    tensors = {"encoder.weight": torch.randn(9, 5, generator=draw), "decoder.weight": torch.randn(5, 9, generator=draw)}
    tensors |= {"encoder.bias": torch.zeros(9), "b_dec": torch.zeros(5), "k": torch.tensor(2, dtype=torch.int32)}
    config = {"trainer": {"dict_class": "BatchTopKSAE", "k": 2}}
    with pytest.raises(FormatError, match="none was learnt"):
        from_dictionary_learning(config, tensors | {"threshold": torch.tensor(-1.0)}, tmp_path, tmp_path)


@pytest.mark.parametrize("scale", [None, 1.0, 0.25])
def test_dictionary_learning_saving_needs_no_factor_of_rows(tmp_path: Path, scale: float | None) -> None:
    """Its trainer saves by a norm_factor that it does not have (NameError) unless activations were normalised."""
    dictionary = saetools.load(GOLDEN / "saelens-topk-f32")
    save_dictionary(dictionary, tmp_path / "d", None, scale=scale)
    x_ND = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    factor = scale or 1.0
    torch.testing.assert_close(saetools.load(tmp_path / "d")(x_ND), dictionary(x_ND * factor) / factor)


def test_saelens_normalised_activations_are_refused_unless_folded(tmp_path: Path) -> None:
    """SAELens#381, #355, #404: checkpoints whose scale is not in the file are silently wrong."""
    path = copy("saelens-topk-f32", tmp_path / "d", normalize_activations="expected_average_only_in")
    with pytest.raises(FormatError, match="not in the file"):
        saetools.load(path)


def test_saelens_exports_say_the_version_that_reads_them(tmp_path: Path) -> None:
    """Without sae_lens_version SAELens reads a file by the rules of before 6.0."""
    dictionary = saetools.load(GOLDEN / "sparsify-f32")
    dictionary.spec = PointSpec(host="gpt2", point="blocks.2.hook_out", d_model=6, prepend_bos=True)
    save_saelens(dictionary, tmp_path / "d")
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert config["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    assert config["rescale_acts_by_decoder_norm"] is False


def test_transcoders_and_skips_are_refused(tmp_path: Path) -> None:
    for number, change in enumerate(({"transcode": True}, {"skip_connection": True}, {"activation": "groupmax"})):
        path = copy("sparsify-f32", tmp_path / str(number), **change)
        with pytest.raises(FormatError, match=next(iter(change))):
            saetools.load(path)


def test_not_strict_passes_over_what_is_unknown_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copy("saelens-topk-f32", tmp_path / "d", colour="blue")
    with pytest.raises(FormatError, match="unknown key 'colour'"):
        saetools.load(path)
    dictionary = saetools.load(path, strict=False)
    assert "unknown key 'colour', passed over" in caplog.text
    expected = load_file(path / "expected.safetensors")
    torch.testing.assert_close(dictionary(expected["x"]), expected["recon"], rtol=1e-5, atol=1e-5)


def test_a_file_stands_for_its_directory() -> None:
    for file in ("sparsify-f32/sae.safetensors", "saelens-topk-f32/cfg.json"):
        assert saetools.load(GOLDEN / file).kind == "topk"
    assert saetools.load(GOLDEN / "llama-scope-f32/checkpoints/final.safetensors").kind == "jumprelu"
