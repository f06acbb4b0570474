"""ITDA as its authors' code saves it: atoms.pt, atom_indices.pt and metadata.yaml.

    code: k steps of matching pursuit of x over the atoms by |correlation|, atoms selectable again
    recon = code atoms                                                                                    [F, D]

Source: Leask, Nanda, Al Moubayed 2025, arXiv 2505.17769. metadata.yaml without k means 40 there, and here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.errors import FormatError
from saetools.formats.base import USUAL, Format, Reading
from saetools.formats.foreign import build, check_keys, check_tensors, placed, positive_int
from saetools.formats.pt import mentions, read_pt
from saetools.safeio import read_yaml

ATOMS, PLACES, CONFIG = "atoms.pt", "atom_indices.pt", "metadata.yaml"
DEFAULT_K = 40
IGNORED = (  # of training
    *("wandb_name", "layer", "lm_name", "device", "submodule_name", "steps", "loss_threshold", "dataset", "seq_len"),
    *("batch_size", "seed", "max_dict_size", "activation_dim"),
)


class ITDAFormat(Format, name="ITDA", layout=f"{ATOMS}, {PLACES} and {CONFIG} (needs allow_pt)"):
    """The directory of one layer."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return mentions(path / ATOMS) and (path / CONFIG).is_file()

    @classmethod
    def read(cls, path: Path, how: Reading) -> Dictionary:
        config = read_yaml(path / CONFIG)
        if not isinstance(config, dict):
            raise FormatError(f"{path / CONFIG} holds no mapping.")
        atoms, places = (read_pt(path / name, how.allow_pt, cls.name).tensors for name in (ATOMS, PLACES))
        dictionary = from_itda(
            config, atoms | {"where": places.get("", torch.zeros(0, dtype=torch.float32))}, path, how
        )
        said = {"host": config.get("lm_name"), "layer": config.get("layer")}
        return placed(dictionary, how, {"layout": cls.name, **said})


def from_itda(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, how: Reading = USUAL) -> Dictionary:
    """The dictionary of the atoms ("" in `tensors`) and the rows they were ("where" [F, 2]). Raises FormatError."""
    check_keys(config, ("k",), IGNORED, path / CONFIG, how.strict)
    k = positive_int({"k": DEFAULT_K} | dict(config), "k", path / CONFIG)
    found = check_tensors(
        {"atoms": tensors[""]} if "" in tensors else {}, {"atoms": "FD"}, {}, path / ATOMS, how.strict
    )
    atoms_FD = found["atoms"]
    where_F2 = tensors["where"]
    if tuple(where_F2.shape) != (len(atoms_FD), 2) or where_F2.dtype.is_floating_point:
        raise FormatError(
            f"{path / PLACES} has {where_F2.dtype} {list(where_F2.shape)}; expected are whole numbers "
            f"[{len(atoms_FD)}, 2]."
        )
    weights = {
        "W_dec_FD": atoms_FD,
        "b_dec_D": torch.zeros_like(atoms_FD[0]),
        "n_atoms": torch.tensor(len(atoms_FD)),
        "where_F2": where_F2.long(),
        "block_F": torch.zeros(len(atoms_FD), dtype=torch.int64),
    }
    return build("itda", {"k": k}, weights, path)
