"""Gemma Scope (1): params.npz.

    pre  = x W_enc + b_enc, b_dec not subtracted           W_enc [D, F]
    code = ReLU(pre) where pre > threshold                 threshold [F]
    recon = code W_dec + b_dec                             W_dec [F, D]

Source: Lieberum et al. 2024, arXiv 2408.05147. The SAEs of embeddings are for embeddings before Gemma multiplies them
by sqrt(D), which the file does not say: divide rows that come from after that by sqrt(D), and multiply what comes back.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError
from saetools.formats.base import USUAL, Format, Reading
from saetools.formats.foreign import bias_of_centre, build, check_tensors, placed
from saetools.safeio import load_npz

WEIGHTS = "params.npz"
OWN_INPUT = "Transcoders are not readable: our dictionaries reconstruct their own input, by atoms alone."
SHAPES = {"dec": "FD", "enc": "DF"}
BIASES = {"b_enc": "F", "b_dec": "D", "threshold": "F"}


class GemmaScopeFormat(Format, name="Gemma Scope", layout=f"{WEIGHTS} with W_enc, W_dec, b_enc, b_dec and threshold"):
    """The directory of one Gemma Scope SAE, or its params.npz."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / WEIGHTS).is_file() or (path.is_file() and path.suffix == ".npz")

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        file = path / WEIGHTS if path.is_dir() else path
        arrays = load_npz(file)
        for name, array in arrays.items():
            if array.dtype.kind != "f" or array.dtype.itemsize > 8:
                raise FormatError(f"{file}: {name} is {array.dtype}; weights are of 16, 32 or 64 bit floating point.")
        tensors = {
            name: torch.from_numpy(a.astype(a.dtype.newbyteorder("="), copy=False)) for name, a in arrays.items()
        }
        return placed(from_gemma_scope(tensors, file, how), how, {"layout": cls.name})


def from_gemma_scope(tensors: Mapping[str, Tensor], path: Path, how: Reading = USUAL) -> Dictionary:
    """The JumpReLU dictionary of these tensors (W_enc may be called w_enc); `path` is for messages. Raises FormatError.

    Both generations of Gemma Scope compute it. A skip connection is refused, strict or not: it changes every row.
    """
    if "affine_skip_connection" in tensors:
        raise FormatError(f"{path} has an affine_skip_connection. {OWN_INPUT}")
    w = "w" if "w_enc" in tensors else "W"
    shapes = {f"{w}_{name}": letters for name, letters in SHAPES.items()} | BIASES
    found = check_tensors(tensors, shapes, {}, path, how.strict)
    W_enc_FD = found[f"{w}_enc"].T.contiguous()
    weights = {
        "W_enc_FD": W_enc_FD,
        "b_enc_F": found["b_enc"] + bias_of_centre(W_enc_FD, found["b_dec"]),
        "W_dec_FD": found[f"{w}_dec"],
        "b_dec_D": found["b_dec"],
        "threshold_F": found["threshold"],
    }
    return build("jumprelu", {}, weights, path)
