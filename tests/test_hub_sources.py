"""Evaluating and looking at dictionaries on the hub: as those on disk, with the results in a directory of their own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import saetools
from saetools import pipeline
from saetools.cli import main
from saetools.formats.hub import push
from tests.formats.hub_server import Hub, connect, disconnect, serving

GOLDEN = Path(__file__).parent / "formats" / "golden"
D = 6


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        connect(server, monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on rows of width D."""
    draw = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(11, D, generator=draw), dim=1)
    codes = torch.rand(3000, 11, generator=draw) * (torch.rand(3000, 11, generator=draw) < 0.2)
    save_file({"x": codes @ atoms}, tmp_path / "x.safetensors")
    settings = f"""--activations.source rows --activations.path {tmp_path / "x.safetensors"}
        --activations.ring_rows 1024 --activations.calibration_rows 1000 --dictionary.n_features 11 --dictionary.k 3
        --training.n_tokens 2048 --training.batch_rows 256 --logging.progress false --run.threads 1
        --run.dir {tmp_path / "run"}"""
    pipeline.train([pipeline.read_config("quickstart", settings.split())])
    return tmp_path / "run"


def figures(path: Path) -> dict[str, float]:
    return {r["name"]: r["value"] for r in json.loads(path.read_text()) if not r["name"].startswith("cost")}


def test_one_of_ours_knows_its_data(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, "hf://me/saes/small")
    source, options = "hf://me/saes/small", ["--evaluation.run=[reconstruction, sparsity]"]
    assert main(["evaluate", str(run), *options]) == main(["evaluate", source, *options]) == 0
    (copy,) = Path("runs/hub/me/saes").iterdir()
    assert copy.name == f"small@{hub.commit_of('me/saes')[:12]}"
    assert figures(copy / "eval.json") == figures(run / "eval.json") and figures(run / "eval.json")["fvu"] < 1
    x_ND = torch.randn(9, D)
    assert torch.equal(saetools.load(copy)(x_ND), saetools.load(run)(x_ND)), "bit for bit as it was trained"
    assert saetools.load(copy).provenance["source"] == source

    disconnect(monkeypatch)
    assert main(["dashboard", source, "--export", "page.html", "--features", "3", "--compare", source]) == 0
    assert "document" in Path("page.html").read_text()
    assert saetools.explore(source).store.info.n_features == 11
    assert len(saetools.explore(run).partners(source)) == 11
    assert [path.name for path in Path("runs/hub/me/saes").iterdir()] == [copy.name], "of one commit one copy"

    capsys.readouterr()
    assert main(["evaluate", "hf://me/absent"]) == 2 and "no downloaded copy" in capsys.readouterr().err
    assert main(["evaluate", "hf://me"]) == 2 and "Write hf://organisation/" in capsys.readouterr().err


def test_another_librarys_is_told_where_its_data_are(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in ("cfg.json", "sae.safetensors"):
        hub.files.setdefault("org/sae", {})[file] = (GOLDEN / "sparsify-f32" / file).read_bytes()
    assert main(["evaluate", "hf://org/sae"]) == 2
    assert "Name them with --config FILE" in capsys.readouterr().err
    assert main(["evaluate", "hf://org/sae", "--config", str(run / "config.yaml")]) == 0
    (copy,) = Path("runs/hub/org").iterdir()
    assert figures(copy / "eval.json")["fvu"] > 0


def test_a_file_of_another_library_has_its_results_beside_it(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "l0_50.npz"
    file.write_bytes((GOLDEN / "gemma-scope-f32" / "params.npz").read_bytes())
    assert main(["evaluate", str(file), "--config", str(run / "config.yaml")]) == 0
    assert figures(tmp_path / "l0_50" / "eval.json")["fvu"] > 0
