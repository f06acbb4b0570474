"""Keys of services that lie in the environment are in nothing that a run writes: configs, logs, checkpoints, pages."""

import io
import json
import os
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

SECRETS = {
    "HF_TOKEN": "hf_plantedPlantedPlantedPlanted0001",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedPlantedPlantedPlanted0002",
    "WANDB_API_KEY": "40" * 10 + "planted0000000000003",
    "OPENAI_API_KEY": "sk-planted0000000000000000000004",
}
SETTINGS = {
    "corpus.max_documents": "4",
    "activations.ring_rows": "2048",
    "activations.calibration_rows": "500",
    "dictionary.n_features": "64",
    "dictionary.k": "4",
    "training.n_tokens": "3000",
    "training.batch_rows": "256",
    "evaluation.n_tokens": "1500",
    "logging.progress": "false",
    "logging.wandb": "offline",
}


def saetools(*arguments: str, cwd: Path) -> str:
    """What a command of a process with the secrets in its environment says."""
    environment = {**os.environ, **SECRETS, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "HOME": str(cwd)}
    command = [sys.executable, "-m", "saetools.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout + done.stderr


def texts(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and of what is packed in it."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".sqlite":
        connection = sqlite3.connect(path)
        yield "\n".join(connection.iterdump()).encode("utf-8", "replace")
        yield from (zlib.decompress(record) for (record,) in connection.execute("SELECT record FROM records"))
        connection.close()
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


@pytest.mark.slow
def test_no_artifact_has_a_planted_secret(tmp_path: Path) -> None:
    settings = [part for name, value in SETTINGS.items() for part in (f"--{name}", value)]
    said = saetools("train", "quickstart", "--run.dir", "run", *settings, cwd=tmp_path)
    said += saetools("evaluate", "run", cwd=tmp_path)
    said += saetools("dashboard", "run", "--export", "page.html", "--features", "3", cwd=tmp_path)
    said += saetools("train", "run", "--print-config", cwd=tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.suffix for path in files}
    assert {".yaml", ".json", ".jsonl", ".safetensors", ".sqlite", ".html", ".wandb"} <= names, names
    found = [
        (str(path.relative_to(tmp_path)), name)
        for path in files
        for text in texts(path)
        for name, secret in SECRETS.items()
        if secret.encode() in text
    ]
    assert found == []
    assert not [name for name, secret in SECRETS.items() if secret in said]
    (tmp_path / "leak.json").write_text(json.dumps({"key": SECRETS["HF_TOKEN"]}))
    assert any(SECRETS["HF_TOKEN"].encode() in text for text in texts(tmp_path / "leak.json")), "the scan sees one"
