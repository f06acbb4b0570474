"""OpenAI's and ITDA's layouts, made by hand from their published code, against its formulas in dense torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saetools
from saetools.errors import FormatError
from saetools.formats import pt, pt_sandbox

D, F, K = 6, 11, 3
X_ND = torch.randn(40, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 0.3


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt, "_run_sandbox", lambda path, out, objects: pt_sandbox.convert(str(path), str(out), objects))


def openai(activation: str, **more: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (F, D), "decoder.weight": (D, F), "pre_bias": (D,), "latent_bias": (F,)}
    made: dict[str, Any] = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    made["stats_last_nonzero"] = torch.zeros(F, dtype=torch.int64)
    made["activation"] = activation
    if activation == "TopK":
        made["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"}
    return made | more


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_openai(tmp_path: Path, activation: str) -> None:
    made = openai(activation)
    torch.save(made, tmp_path / "7.pt")
    w = {name: t.double() for name, t in made.items() if isinstance(t, Tensor)}
    mean, std = X_ND.mean(1, keepdim=True), X_ND.std(1, keepdim=True)
    y_ND = (X_ND - mean) / (std + 1e-5) if activation == "TopK" else X_ND
    pre = (y_ND - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    code = pre.relu()
    if activation == "TopK":
        values, places = pre.topk(K, dim=1)
        code = torch.zeros_like(pre).scatter(1, places, values.relu())
    recon = code @ w["decoder.weight"].T + w["pre_bias"]
    if activation == "TopK":
        code, recon = code * std, recon * std + mean
    dictionary = saetools.load(tmp_path / "7.pt", allow_pt=True)
    ours = dictionary.encode(X_ND.float()).to_dense()[:, :F]
    assert torch.equal(ours > 0, code > 0) and (code > 0).any()
    assert (ours - code).abs().max() <= 1e-6 * code.abs().max()
    assert (dictionary(X_ND.float()) - recon).abs().max() <= 1e-6 * recon.abs().max()


def test_openai_refused(tmp_path: Path) -> None:
    for made, message in (
        (openai("Identity"), "activation is 'Identity'"),
        (openai("TopK", activation_state_dict={"k": K, "postact_fn": "Identity"}), "postact_fn is 'Identity'"),
        (openai("TopK", activation_state_dict={"postact_fn": "ReLU"}), "k is None"),
        (openai("TopK", pre_bias=torch.ones(D + 1)), "pre_bias has shape"),
    ):
        torch.save(made, tmp_path / "7.pt")
        with pytest.raises(FormatError, match=message):
            saetools.load(tmp_path / "7.pt", allow_pt=True)


def write_itda(path: Path, config: str = f"k: {K}\nlm_name: gpt2\nlayer: 3\n") -> Tensor:
    atoms_FD = torch.nn.functional.normalize(torch.randn(F, D, generator=torch.Generator().manual_seed(0)), dim=1)
    torch.save(atoms_FD, path / "atoms.pt")
    torch.save(torch.arange(2 * F).view(F, 2), path / "atom_indices.pt")
    (path / "metadata.yaml").write_text(config)
    return atoms_FD


def test_itda(tmp_path: Path) -> None:
    atoms_FD = write_itda(tmp_path).double()
    left, code = X_ND.clone(), torch.zeros(len(X_ND), F, dtype=torch.float64)
    rows = torch.arange(len(X_ND))
    for _ in range(K):
        correlation = left @ atoms_FD.T
        best = correlation.abs().argmax(1)
        value = correlation[rows, best]
        code[rows, best] += value
        left -= value[:, None] * atoms_FD[best]
    dictionary = saetools.load(tmp_path, allow_pt=True)
    assert dictionary.kind == "itda" and dictionary.provenance["host"] == "gpt2"
    assert (dictionary.encode(X_ND.float()).to_dense() - code).abs().max() <= 1e-6 * code.abs().max()
    assert (dictionary(X_ND.float()) - (X_ND - left)).abs().max() <= 1e-5


def test_itda_refused(tmp_path: Path) -> None:
    for config, message in (
        ("k: many\n", "k is 'many'"),
        ("colour: 1\n", "unknown key 'colour'"),
        ("a: &x [1]\nk: *x\n", "aliases"),
        ("k: [\n", "not valid YAML"),
        ("- 1\n", "no mapping"),
    ):
        write_itda(tmp_path, config)
        with pytest.raises(FormatError, match=message):
            saetools.load(tmp_path, allow_pt=True)
