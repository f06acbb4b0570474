"""`saetools.load`: dictionaries, runs finished and unfinished, and what is neither."""

import logging
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import saetools
from saetools.dictionaries.base import Dictionary, make_dictionary
from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError, FormatError
from saetools.formats.base import Format, formats
from saetools.formats.native import save_dictionary


def save(path: Path, step: int) -> None:
    dictionary: Dictionary = make_dictionary(TopK.configure(n_features=10, k=3), 6, seed=step)
    save_dictionary(dictionary, path, spec=None, provenance={"step": step})


def test_a_dictionary_directory(tmp_path: Path) -> None:
    save(tmp_path / "d", 1)
    assert saetools.load(tmp_path / "d").provenance == {"step": 1}
    assert saetools.load(str(tmp_path / "d"), dtype=torch.float64).W_dec_FD.dtype == torch.float64


def test_the_newest_valid_checkpoint_until_the_run_is_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (9, 10, 200):
        save(tmp_path / "checkpoints" / str(step) / "dictionary", step)
    (tmp_path / "checkpoints" / "999-partial").mkdir()
    assert saetools.load(tmp_path).provenance == {"step": 200}
    (tmp_path / "checkpoints" / "200" / "dictionary" / "model.safetensors").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert saetools.load(tmp_path).provenance == {"step": 10}
    assert "skipped the checkpoint 200" in caplog.text and "truncated" in caplog.text
    assert saetools.load(tmp_path / "checkpoints" / "9").provenance == {"step": 9}
    save(tmp_path / "dictionary", 300)
    assert saetools.load(tmp_path).provenance == {"step": 300}


def test_a_run_without_a_checkpoint_is_said_to_be_one(tmp_path: Path) -> None:
    for name in ("config.yaml", "run.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(FormatError, match=r"no valid checkpoint\. Skipped: none there\. `saetools train .*` begins it"):
        saetools.load(tmp_path)


def test_a_run_without_a_valid_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "5" / "dictionary").mkdir(parents=True)
    with pytest.raises(FormatError, match=r"no valid checkpoint\. Skipped: 5: "):
        saetools.load(tmp_path)


def test_a_damaged_final_dictionary_is_not_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "dictionary", 300)
    save(tmp_path / "checkpoints" / "200" / "dictionary", 200)
    (tmp_path / "dictionary" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        saetools.load(tmp_path)


def test_unknown_layouts_list_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"abc")
    with pytest.raises(
        FormatError, match=r"no known layout. Found: weights\.bin\. Known layouts: .*; run: .*; saetools"
    ):
        saetools.load(tmp_path)
    with pytest.raises(FormatError, match="a file of 3 bytes"):
        saetools.load(tmp_path / "weights.bin")
    with pytest.raises(FormatError, match="does not exist"):
        saetools.load(tmp_path / "absent")


def test_what_is_missing_of_a_layout_is_named(tmp_path: Path) -> None:
    """As a download that was cut short leaves it."""
    golden = Path(__file__).parent / "golden"
    for name, lost in (("saelens-topk-f32", "cfg.json"), ("llama-scope-f32", "hyperparams.json")):
        shutil.copytree(golden / name, tmp_path / name)
        (tmp_path / name / lost).unlink()
        with pytest.raises(FormatError, match=f"no known layout .*safetensors is of .*, but {lost} is missing"):
            saetools.load(tmp_path / name)
    shutil.copytree(golden / "sparsify-f32", tmp_path / "s")
    (tmp_path / "s" / "sae.safetensors").unlink()
    with pytest.raises(FormatError, match=r"sae\.safetensors"):
        saetools.load(tmp_path / "s")


def test_directories_of_several_dictionaries_name_them(tmp_path: Path) -> None:
    """As sparsify writes one per hook point, dictionary_learning one per trainer."""
    for name in ("layers.3.mlp", "layers.10"):
        shutil.copytree(Path(__file__).parent / "golden" / "sparsify-f32", tmp_path / "run" / name)
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "logs" / "cfg.json").write_text("{")
    folders = f"{tmp_path / 'run' / 'layers.10'}, {tmp_path / 'run' / 'layers.3.mlp'}. Found"
    with pytest.raises(
        FormatError, match=re.escape(f"no known layout, but what is in it may be: name one of {folders}")
    ):
        saetools.load(tmp_path / "run")
    (tmp_path / "qwen").mkdir()
    file = shutil.copy(Path(__file__).parent / "golden" / "qwen-scope-f32" / "layer4.sae.pt", tmp_path / "qwen")
    with pytest.raises(FormatError, match=re.escape(f"name one of {file}. Found")):
        saetools.load(tmp_path / "qwen")


def test_a_dictionary_that_lost_its_manifest_says_so(tmp_path: Path) -> None:
    save(tmp_path / "d", 1)
    (tmp_path / "d" / "manifest.json").unlink()
    with pytest.raises(FormatError, match=r"manifest\.json does not exist"):
        saetools.load(tmp_path / "d")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device is cuda:1, but torch .* finds no CUDA GPU\. Use cpu"):
        saetools.load(tmp_path, device="cuda:1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, "device is 'gpu'; write cpu"),
        ({"device": None}, "device is None; write cpu"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'; give"),
        ({"dtype": torch.int8}, r"dtype is torch\.int8; give"),
        ({"k": 0}, "k is 0; it is a number of features"),
        ({"k": 2.5}, r"k is 2\.5; it is"),
    ],
)
def test_options_that_are_none(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        saetools.load(tmp_path, **options)


def test_format_names_are_unique() -> None:
    names = [f.name for f in formats()]
    assert len(names) == len(set(names))
    with pytest.raises(ValueError, match="already taken"):
        type("Other", (Format,), {}, name=names[0], layout="")


def test_lazy_names() -> None:
    assert "topk" in saetools.available_dictionaries()
    assert {"load", "available_dictionaries"} <= set(dir(saetools))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        saetools.lod  # noqa: B018
    project = tomllib.loads((Path(saetools.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert saetools.__version__ == project["version"]
