"""Programs of scripts/ that no other test runs: what they refuse before they begin, and what they may go on from."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a script with arguments; what it says as it ends."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("PYTHONHASHSEED", "0")

    def ended(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with pytest.raises(SystemExit) as end:
            importlib.import_module(name).main()
        return f"{end.value.code} {capsys.readouterr().err}"

    return ended


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("make_golden", (), "directory"),
        ("make_golden", ("--check",), "directory"),
        ("make_golden", ("--chek", "here"), "--chek"),
        ("bench_path", ("--nonsense", "3"), "unknown option --nonsense"),
        ("bench_path", ("--tokens", "5000"), "--tokens is 5000; 8192 is the least"),
        ("bench_dashboard", ("--switches", "201"), "--switches"),
        ("bench_dashboard", ("--switches", "3"), "--switches"),
        ("bench_dashboard", ("--features", "0"), "--features"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(
    run: Any, name: str, arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in run(name, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def demo_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script that trains the subject model, its text a few lines; (module, arguments)."""
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("train_demo_host")

    class Corpus:
        def documents(self, split: str) -> list[Any]:
            return [script.Document(f"{split}{n}", f"def f{n}(x):\n    return x + {n}\n" * 9) for n in range(4)]

    monkeypatch.setattr(script, "StdlibCorpus", Corpus)
    monkeypatch.setattr(script, "package_documents", lambda heldout: Corpus().documents("package"))
    monkeypatch.setattr(
        script, "make_model", lambda a: torch.nn.Linear(a.width, a.layers), raising=True
    )  # what is trained is of no matter here
    sizes = {"vocab": 280, "width": 64, "layers": 1, "context": 16, "batch": 2, "seed": 0, "tokens": 64}
    return script, argparse.Namespace(**sizes, work=tmp_path / "work", checkpoint_every=1, threads=1)


def test_a_work_directory_of_another_model_is_refused(demo_host: Any) -> None:
    """Another seed, or other sizes, went on from it: with the tokens of the other vocabulary, or in the middle."""
    script, arguments = demo_host
    script.prepare(arguments)
    assert sorted(path.name for path in arguments.work.iterdir()) == [
        *("packages.npy", "settings.json", "stdlib.npy", "tokenizer.json")
    ]
    arguments.tokens, arguments.threads = 640, 2
    tokens = script.prepare(arguments)[1]
    assert np.array_equal(tokens, np.load(arguments.work / "stdlib.npy"))
    for name in ("seed", "vocab", "width", "layers", "context", "batch"):
        other = argparse.Namespace(**{**vars(arguments), name: getattr(arguments, name) * 2 + 1})
        with pytest.raises(SystemExit, match=f"another model: {name} "):
            script.prepare(other)


def test_tokens_are_whole_or_not_there(demo_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script, arguments = demo_host

    save = np.save

    def killed(file: Any, tokens: np.ndarray) -> None:
        save(file, tokens)
        if "packages" in str(file):
            Path(file).write_bytes(b"\x93NUMPY")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script.np, "save", killed)
        script.prepare(arguments)
    assert len(script.prepare(arguments)[2])


def test_fewer_tokens_than_a_step_has(demo_host: Any) -> None:
    script, arguments = demo_host
    arguments.tokens = 31
    with pytest.raises(SystemExit, match="--tokens is 31; a step has 32"):
        script.prepare(arguments)
