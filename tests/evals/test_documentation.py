"""docs/evaluations.md is true: its code runs, its table names every evaluation and its files, figures have formulas."""

import importlib
import re
from pathlib import Path

import pytest
from every_evaluation import NAMES, figures, runnable
from small_hosts import D_MODEL, host_subject

from saetools.dictionaries.topk import TopK
from saetools.evals.base import available_evaluations, make_evaluation
from saetools.evals.run import run_evaluations

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "evaluations.md").read_text()


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subject = host_subject(TopK(TopK.configure(n_features=24, k=3), D_MODEL))
    subject.dictionary.spec = subject.spec
    names = ("reconstruction", "loss_recovered")
    run_evaluations(subject, [make_evaluation(name) for name in names], tmp_path / "runs" / "quickstart")
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 4
    known = {"subject": subject}
    for block in blocks:
        exec(compile(block, "docs/evaluations.md", "exec"), known)
    assert isinstance(known["text"], str)


def test_every_evaluation_has_a_row_and_every_file_exists() -> None:
    for name in available_evaluations():
        assert f"| {name} | `evals/{name}.py` |" in TEXT
    for path in re.findall(r"`((?:evals|features)/\w+\.py)", TEXT):
        assert (ROOT / "saetools" / path).exists(), path


@pytest.mark.parametrize("name", sorted(available_evaluations()))
def test_docstrings_say_what_it_costs_and_what_it_cannot_tell(name: str) -> None:
    text = importlib.import_module(f"saetools.evals.{name}").__doc__ or ""
    assert "Cost:" in text and "Cannot tell:" in text, name


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_define_every_figure(name: str) -> None:
    """By its name, or as one of a family: `tpp_<n>` is any number of them, `..._random` any figure's control."""
    text = importlib.import_module(f"saetools.evals.{name}").__doc__ or ""
    words = set(re.findall(r"(?:\.\.\.)?[\w<>]+", text))
    patterns = [re.sub(r"<\w+>", r"\\w+", word.replace("...", r"\w+")) for word in words if not word.isdigit()]
    found = figures(name, runnable(name))
    assert found
    assert not [figure for figure in found if not any(re.fullmatch(pattern, figure) for pattern in patterns)]
