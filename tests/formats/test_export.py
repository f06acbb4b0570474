"""Written for others and read back: the same codes, bit-equal weights; what cannot be said is refused."""

import json
from pathlib import Path

import pytest
import torch

import saetools
from saetools.dictionaries.base import Dictionary, dictionary_class, make_dictionary
from saetools.errors import MismatchError, RunError
from saetools.formats import pt, pt_sandbox
from saetools.formats.load import save_as
from saetools.formats.saelens import save_saelens
from saetools.records import PointSpec
from saetools.safeio import load_safetensors

D = 6
WRITABLE = ("topk", "variational", "relu_l1", "p_anneal", "jumprelu", "gated", "mutual_choice", "matryoshka")
X_ND = torch.randn(60, D, generator=torch.Generator().manual_seed(3)) * 2


def example(kind: str, **settings: object) -> Dictionary:
    """The kind's own example with these settings, of other width and with every tensor away from its start."""
    config = dictionary_class(kind).examples()[0].model_copy(update=settings)
    dictionary = make_dictionary(config, D)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in dictionary.state_dict().items():
            if name.startswith(("b_", "log_")):
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)
            if name.startswith("threshold"):
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return dictionary.eval()


@pytest.mark.parametrize("kind", [*WRITABLE, "feature_choice"])
def test_saelens_reads_back_what_was_written(tmp_path: Path, kind: str) -> None:
    dictionary = example(kind)
    save_saelens(dictionary, tmp_path / "d")
    back = saetools.load(tmp_path / "d")
    code, same = dictionary.encode(X_ND).to_dense(), back.encode(X_ND).to_dense()
    assert (code > 0).any() and torch.equal(code, same)
    assert torch.equal(dictionary.W_dec_FD, back.W_dec_FD) and torch.equal(dictionary.W_enc_FD, back.W_enc_FD)
    torch.testing.assert_close(dictionary(X_ND), back(X_ND), rtol=1e-6, atol=1e-6)


def test_a_value_at_the_threshold_still_fires(tmp_path: Path) -> None:
    """Ours keeps pre >= threshold, SAELens pre > threshold."""
    dictionary = example("mutual_choice")
    pre_NF = dictionary.pre(X_ND)
    with torch.no_grad():
        dictionary.state_dict()["threshold"].copy_(pre_NF[pre_NF > 0].median())
    save_saelens(dictionary, tmp_path / "d")
    threshold = load_safetensors(tmp_path / "d" / "sae_weights.safetensors")["threshold"]
    assert torch.equal(pre_NF > threshold, pre_NF >= dictionary.state_dict()["threshold"])
    assert (pre_NF == dictionary.state_dict()["threshold"]).any()


@pytest.mark.parametrize("format", ["dictionary_learning", "saelens"])
@pytest.mark.parametrize("kind", ["mutual_choice", "matryoshka", "feature_choice"])
def test_a_threshold_of_zero_is_read_back(
    tmp_path: Path, kind: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before training, or where fewer are positive than are to be kept. The number below it is negative."""
    monkeypatch.setattr(pt, "_run_sandbox", lambda path, out, objects: pt_sandbox.convert(str(path), str(out), objects))
    dictionary = example(kind)
    with torch.no_grad():
        dictionary.state_dict()["threshold_F" if kind == "feature_choice" else "threshold"].zero_()
    save_as(dictionary, tmp_path / "d", format)
    code = dictionary.encode(X_ND).to_dense()
    back = saetools.load(tmp_path / "d", allow_pt=True).encode(X_ND).to_dense()
    assert (code > 0).any() and torch.equal(code > 0, back > 0)
    torch.testing.assert_close(code, back, rtol=1e-6, atol=1e-6)


def test_a_learnt_threshold_of_topk_is_written_as_one(tmp_path: Path) -> None:
    dictionary = example("topk", inference="threshold")
    save_saelens(dictionary, tmp_path / "d")
    back = saetools.load(tmp_path / "d")
    assert back.kind == "jumprelu" and torch.equal(dictionary.encode(X_ND).to_dense(), back.encode(X_ND).to_dense())
    with pytest.raises(MismatchError, match="k largest of each row and nothing else"):
        save_as(dictionary, tmp_path / "s", "sparsify")


@pytest.mark.parametrize("kind", ["topk", "variational"])
def test_sparsify_reads_back_what_was_written(tmp_path: Path, kind: str) -> None:
    dictionary = example(kind)
    save_as(dictionary, tmp_path / "d", "sparsify")
    back = saetools.load(tmp_path / "d")
    assert torch.equal(dictionary.encode(X_ND).to_dense(), back.encode(X_ND).to_dense())
    assert torch.equal(dictionary(X_ND), back(X_ND))


@pytest.mark.parametrize("kind", [*WRITABLE, "feature_choice"])
def test_dictionary_learning_reads_back_what_was_written(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pt, "_run_sandbox", lambda path, out, objects: pt_sandbox.convert(str(path), str(out), objects))
    dictionary = example(kind)
    save_as(dictionary, tmp_path / "d", "dictionary_learning")
    back = saetools.load(tmp_path / "d", allow_pt=True)
    code, same = dictionary.encode(X_ND).to_dense(), back.encode(X_ND).to_dense()
    assert (code > 0).any() and torch.equal(code > 0, same > 0)
    torch.testing.assert_close(code, same, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dictionary(X_ND), back(X_ND), rtol=1e-6, atol=1e-6)
    assert torch.equal(dictionary.W_dec_FD, back.W_dec_FD) and torch.equal(dictionary.W_enc_FD, back.W_enc_FD)


@pytest.mark.parametrize("kind", ["abs_topk", "matching_pursuit"])
def test_saelens_reads_back_signed_and_pursued_codes(tmp_path: Path, kind: str) -> None:
    dictionary = example(kind)
    dictionary.constrain_()
    save_as(dictionary, tmp_path / "d", "saelens")
    back = saetools.load(tmp_path / "d")
    assert torch.equal(dictionary.encode(X_ND).to_dense(), back.encode(X_ND).to_dense())
    assert torch.equal(dictionary(X_ND), back(X_ND))


def test_our_own_format_and_unknown_ones(tmp_path: Path) -> None:
    dictionary = example("topk")
    save_as(dictionary, tmp_path / "d", "saetools")
    assert torch.equal(saetools.load(tmp_path / "d")(X_ND), dictionary(X_ND))
    with pytest.raises(MismatchError, match=r"no format 'keras'\. Formats that can be written: SAELens"):
        save_as(dictionary, tmp_path / "e", "keras")
    with pytest.raises(MismatchError, match=r"no format 'gwen scope'\. Formats"):  # near one that is read alone
        save_as(dictionary, tmp_path / "e", "gwen scope")
    with pytest.raises(MismatchError, match="Gemma Scope is read, not written"):
        save_as(dictionary, tmp_path / "e", "gemma_scope")


def test_layout_for_saelens(tmp_path: Path) -> None:
    dictionary = example("topk")
    dictionary.spec = PointSpec(host="gpt2", point="blocks.2.hook_out", d_model=D, prepend_bos=True, context_tokens=64)
    save_saelens(dictionary, tmp_path / "d", host="gpt2-small", point="blocks.2.hook_resid_mid")
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    assert (config["architecture"], config["k"], config["d_in"], config["d_sae"]) == ("topk", 4, D, 40)
    assert config["rescale_acts_by_decoder_norm"] is False and config["apply_b_dec_to_input"] is True
    named = {"model_name": "gpt2-small", "hook_name": "blocks.2.hook_resid_mid", "prepend_bos": True}
    named["context_size"] = 64
    assert named.items() <= config["metadata"].items() and config["metadata"]["sae_lens_version"] >= "6"
    shapes = {name: tuple(t.shape) for name, t in load_safetensors(tmp_path / "d" / "sae_weights.safetensors").items()}
    assert shapes == {"W_enc": (D, 40), "W_dec": (40, D), "b_enc": (40,), "b_dec": (D,)}
    with pytest.raises(RunError, match="already exists"):
        save_saelens(dictionary, tmp_path / "d")


@pytest.mark.parametrize("kind", ["itda", "normalised_topk", "gradient", "top_afa"])
def test_what_cannot_be_said_is_refused(tmp_path: Path, kind: str) -> None:
    dictionary = make_dictionary(dictionary_class(kind).examples()[0], 16)
    with pytest.raises(MismatchError, match=f"kind {kind}"):
        save_saelens(dictionary, tmp_path / "d")
    with pytest.raises(MismatchError, match=f"kind {kind}"):
        save_as(dictionary, tmp_path / "d", "sparsify")
    with pytest.raises(MismatchError, match=f"kind {kind}"):
        save_as(dictionary, tmp_path / "d", "dictionary_learning")
    assert not (tmp_path / "d").exists()
