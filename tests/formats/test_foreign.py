"""Whatever happens to a foreign file, loading it gives FormatError or a dictionary, never another exception."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import saetools
from saetools.errors import FormatError

D, F = 5, 9
ODD: list[Any] = [None, True, -1, 0, 3, 1e300, "", "topk", [], {}, [1], {"k": 2}, float("nan")]
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sae_weights.safetensors": (
        "cfg.json",
        {"architecture": "topk", "d_in": D, "d_sae": F, "activation_fn_kwargs": {"k": 2}, "apply_b_dec_to_input": True},
    ),
    "sae.safetensors": ("cfg.json", {"d_in": D, "k": 2, "num_latents": F, "transcode": False, "activation": "topk"}),
    "checkpoints/final.safetensors": (
        "hyperparams.json",
        {"d_model": D, "d_sae": F, "jump_relu_threshold": 0.5, "dataset_average_activation_norm": {"in": 2.0}},
    ),
}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "sae_weights.safetensors": {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)},
    "sae.safetensors": {"encoder.weight": (F, D), "W_dec": (F, D), "encoder.bias": (F,), "b_dec": (D,)},
    "checkpoints/final.safetensors": {
        "encoder.weight": (F, D),
        "decoder.weight": (D, F),
        "encoder.bias": (F,),
        "decoder.bias": (D,),
    },
    "params.npz": {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)},
}


def write(path: Path, weights: str) -> Path:
    """A good file of the layout whose weights have this name."""
    file = path / weights
    file.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        name: draw.normal(size=shape).astype("float32") for name, shape in SHAPES[weights].items()
    }
    if weights == "params.npz":
        np.savez(file, **arrays)
    else:
        save_file({name: torch.from_numpy(value) for name, value in arrays.items()}, file)
        name, config = CONFIGS[weights]
        (path / name).write_text(json.dumps(config))
    return file


def loads_or_says_why(path: Path) -> bool:
    """Whether it loads, into a dictionary that works; any exception but FormatError fails the test."""
    try:
        dictionary = saetools.load(path)
    except FormatError:
        return False
    assert dictionary(torch.ones(2, D)).shape == (2, D)
    return True


@pytest.mark.parametrize("weights", SHAPES)
def test_good_files_load(tmp_path: Path, weights: str) -> None:
    write(tmp_path, weights)
    assert loads_or_says_why(tmp_path)
    assert saetools.load(tmp_path, dtype=torch.bfloat16).W_dec_FD.dtype == torch.bfloat16
    assert saetools.load(tmp_path).total_variance.dtype == torch.float64


@pytest.mark.parametrize("weights", CONFIGS)
def test_odd_values_of_every_setting(tmp_path: Path, weights: str) -> None:
    write(tmp_path, weights)
    name, config = CONFIGS[weights]
    outcomes = set()
    for key in config:
        for odd in ODD:
            (tmp_path / name).write_text(json.dumps(config | {key: odd}))
            outcomes.add(loads_or_says_why(tmp_path))
        (tmp_path / name).write_text(json.dumps({k: v for k, v in config.items() if k != key}))
        loads_or_says_why(tmp_path)
    assert False in outcomes


@pytest.mark.parametrize("weights", SHAPES)
def test_damaged_bytes(tmp_path: Path, weights: str) -> None:
    file = write(tmp_path, weights)
    whole, draw = file.read_bytes(), random.Random(weights)
    refused = 0
    for trial in range(150):
        content, place = bytearray(whole), draw.randrange(len(whole) if trial % 2 else 300)
        if trial % 3 == 0:
            content = content[:place]
        elif trial % 3 == 1:
            content.insert(place, draw.randrange(256))
        else:
            content[place] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        refused += not loads_or_says_why(tmp_path)
    assert refused > 100
