"""The README tells the truth: its Python runs on a trained dictionary, its commands and paths exist."""

import re
from pathlib import Path

import pytest
import torch

from saetools.cli import split_overrides
from saetools.pipeline import dictionary_configs, read_config

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saetools.dictionaries.base import make_dictionary
    from saetools.formats.native import save_dictionary

    monkeypatch.chdir(tmp_path)
    config = dictionary_configs()["topk"](kind="topk", n_features=64, k=1)
    save_dictionary(make_dictionary(config, d_model=32), Path("runs/quickstart/dictionary"), spec=None)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README", "exec"), names)
    assert torch.equal(names["code"].to_dense().argmax(dim=1), torch.tensor([0, 1]))


@pytest.mark.parametrize("line", re.findall(r"^    (saetools train .*)$", README, re.MULTILINE))
def test_train_commands_parse(line: str) -> None:
    own, overrides = split_overrides(line.split()[2:])
    assert read_config(Path(__file__).parents[1] / own[0], overrides)


def test_every_override_named_exists() -> None:
    config = read_config("quickstart").model_dump()
    for section, field in re.findall(r"--([a-z]+)\.([a-z_0-9]+)", README):
        assert section == "section" or field in config[section], f"--{section}.{field}"


def test_every_kind_has_a_row() -> None:
    for kind in dictionary_configs():
        assert f"`{kind}`" in README
