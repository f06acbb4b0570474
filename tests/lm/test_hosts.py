"""Which host a config means, and clear errors for the ones that cannot be had."""

import json
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saetools.config import HostConfig
from saetools.errors import DataError, FormatError
from saetools.lm import hosts
from saetools.lm.hosts import make_host

IDS_BT = torch.arange(2, 14).view(2, 6)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list:
    """Every look-up of a name fails at once and is written down; the hub's cache is empty."""
    attempts: list = []

    def refuse(*arguments, **options):
        attempts.append(arguments)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return attempts


@pytest.fixture
def copy(tiny_hosts: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_hosts["llama"], tmp_path / "copy"))


def test_a_local_directory_needs_no_network(tiny_hosts: dict[str, Path], no_network: list) -> None:
    host = make_host(HostConfig(name=str(tiny_hosts["llama"])), "cpu")
    host.logits(IDS_BT)
    assert no_network == [] and host.name == str(tiny_hosts["llama"])


def test_pycode_is_the_packaged_directory(monkeypatch, tiny_hosts: dict[str, Path], tmp_path: Path) -> None:
    monkeypatch.setattr(hosts.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"'pycode' is not in this installation.*train_demo_host"):
        make_host(HostConfig(), "cpu")
    shutil.copytree(tiny_hosts["llama"], tmp_path / "assets" / "pycode")
    assert make_host(HostConfig(), "cpu").spec("blocks.0.hook_out").host == "pycode"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2", "cannot be reached.*no downloaded copy of such a model.*pycode"),
        ("someone/model", "cannot be reached"),
        ("/no/such/directory", "no such file or directory"),
        ("what is this", "neither a path on this machine nor a name"),
    ],
)
def test_hub_names_without_network(name: str, message: str) -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match=message):
        make_host(HostConfig(name=name), "cpu")
    assert time.monotonic() - begin < 30, "never a hang (the machine may be slow)"


def test_a_downloaded_copy_is_used_without_network(tiny_hosts: dict[str, Path], tmp_path: Path) -> None:
    commit, root = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub" / "models--someone--model"
    shutil.copytree(tiny_hosts["gpt2"], root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    host = make_host(HostConfig(name="someone/model"), "cpu")
    assert host.spec("blocks.0.hook_out").revision == commit
    assert torch.equal(host.logits(IDS_BT), make_host(HostConfig(name=str(tiny_hosts["gpt2"])), "cpu").logits(IDS_BT))


def test_the_revision_is_of_the_weights(copy: Path, tiny_hosts: dict[str, Path]) -> None:
    def revision(directory: Path) -> str | None:
        return make_host(HostConfig(name=str(directory)), "cpu").spec("blocks.0.hook_out").revision

    before = revision(copy)
    assert before == revision(tiny_hosts["llama"])
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert revision(copy) != before


def damage_the_tokenizer(directory: Path) -> None:
    for file in directory.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    shutil.copy(directory / "config.json", directory / "tokenizer.json")


def empty(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def remove_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def remove_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def truncate_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def drop_a_matrix(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def widen_config(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "intermediate_size": 52}))


def name_an_unknown_architecture(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty, r"has no config.json: a host is a Hugging Face directory"),
        (remove_config, "has no config.json"),
        (remove_weights, r"has no \*\.safetensors"),
        (truncate_weights, "could not be loaded"),
        (drop_a_matrix, "1 missing keys, such as .*layers.1.mlp.up_proj"),
        (widen_config, "could not be loaded|mismatched keys"),
        (name_an_unknown_architecture, "could not be loaded|No tokenizer could be read"),
        (damage_the_tokenizer, "No tokenizer could be read"),
    ],
)
def test_damaged_directories_are_named(copy: Path, damage, message: str) -> None:
    damage(copy)
    with pytest.raises(FormatError, match=message) as caught:
        make_host(HostConfig(name=str(copy)), "cpu")
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)
