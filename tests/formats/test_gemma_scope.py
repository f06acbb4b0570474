"""Gemma Scope's params.npz, made by hand, against its formula; what is damaged or holds objects is refused."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import saetools
from saetools.errors import FormatError

D, F = 6, 11


def arrays(dtype: str = "float32") -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    made = {"W_enc": draw.normal(size=(D, F)), "W_dec": draw.normal(size=(F, D)) * 2, "b_enc": draw.normal(size=F)}
    made |= {"b_dec": draw.normal(size=D), "threshold": draw.random(F) * 2}
    return {name: value.astype(dtype) for name, value in made.items()}


@pytest.mark.parametrize("stored", ["float32", "float16", ">f4", "float64"])
@pytest.mark.parametrize("names", ["W_", "w_"])
def test_codes_and_reconstructions(tmp_path: Path, stored: str, names: str) -> None:
    made = arrays(stored)
    np.savez(tmp_path / "params.npz", **{name.replace("W_", names): value for name, value in made.items()})
    x_ND = np.random.default_rng(1).normal(size=(40, D)).astype("float32") * 2 + 0.3
    w = {name: value.astype("float64") for name, value in made.items()}
    pre = x_ND @ w["W_enc"] + w["b_enc"]
    code_NF = np.maximum(pre, 0) * (pre > w["threshold"])
    recon_ND = code_NF @ w["W_dec"] + w["b_dec"]
    for source in (tmp_path, tmp_path / "params.npz"):
        dictionary = saetools.load(source)
        code = dictionary.encode(torch.from_numpy(x_ND)).to_dense().detach().numpy()
        assert np.abs(code - code_NF).max() <= 1e-6 * code_NF.max()
        recon = dictionary(torch.from_numpy(x_ND)).detach().numpy()
        assert np.abs(recon - recon_ND).max() <= 1e-6 * np.abs(recon_ND).max()


def test_refused(tmp_path: Path) -> None:
    good = arrays()
    for change, message in (
        ({"extra": np.ones(2)}, "unknown tensor 'extra'"),
        ({"W_enc": good["W_enc"].T}, r"W_enc has shape \[11, 6\]"),
        ({"b_enc": np.ones(F, dtype="int64")}, "b_enc is int64"),
        ({"b_enc": np.array([{}] * F)}, "Python objects"),
    ):
        np.savez(tmp_path / "params.npz", **(good | change))
        with pytest.raises(FormatError, match=message):
            saetools.load(tmp_path)
    del good["threshold"]
    np.savez(tmp_path / "params.npz", **good)
    with pytest.raises(FormatError, match="lacks the tensor 'threshold'"):
        saetools.load(tmp_path)


def test_skip_connections_are_refused_strict_or_not(tmp_path: Path) -> None:
    tensors = {name.replace("W_", "w_"): torch.from_numpy(array) for name, array in arrays().items()}
    save_file(tensors | {"affine_skip_connection": torch.zeros(D, D)}, tmp_path / "params.safetensors")
    for strict in (True, False):
        with pytest.raises(FormatError, match="Transcoders are not readable"):
            saetools.load(tmp_path, strict=strict)


def test_damaged(tmp_path: Path) -> None:
    file = tmp_path / "params.npz"
    np.savez(file, **arrays())
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"params\.npz"):
            saetools.load(tmp_path)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(FormatError, match="CRC"):
        saetools.load(tmp_path)


def test_what_unpacks_to_far_more_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", b"\0" * (1 << 20))
    with pytest.raises(FormatError, match="declares 1,048,576"):
        saetools.load(tmp_path)
