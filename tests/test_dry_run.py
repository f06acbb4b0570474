"""What a dry run tells is what the run asks for."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from saetools.cli import main


def test_room_is_asked_for_with_the_gradients_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They train, and so are in the ring, whatever activations.gradients says."""
    x_ND = torch.randn(3000, 16)
    save_file({"x": x_ND, "grad": 2 * x_ND}, tmp_path / "rows.safetensors")
    rows = ["--activations.source=rows", f"--activations.path={tmp_path / 'rows.safetensors'}"]
    values = [*rows, "--activations.ring_rows=200000", "--dictionary.n_features=64", "--dictionary.k=4"]
    command = ["train", "topk", *values, f"--run.dir={tmp_path / 'out'}", "--run.threads=1"]
    assert main([*command, "--dry-run"]) == 0
    assert "ring 29" in capsys.readouterr().out  # 200,000 (2 * 64 + 16) bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert main(command) == 2 and "ring is 86,400,000" in " ".join(capsys.readouterr().err.split())
