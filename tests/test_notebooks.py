"""The notebooks: each is paired with a script of the same cells, holds no output, and runs offline within a minute."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "analysis" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
QUICK = "import_a_checkpoint"
SECONDS = 60


def test_each_has_both_files() -> None:
    assert NAMES and sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_paired_and_stripped(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    script = jupytext.read(NOTEBOOKS / f"{name}.py")
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in script.cells], (
        f"run: jupytext --to ipynb analysis/notebooks/{name}.py"
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == QUICK else pytest.mark.slow) for n in NAMES])
def test_runs_offline(name: str) -> None:
    """By nbmake, in a process of its own; its limit is in wall time, with room for a machine that does other work."""
    limit = SECONDS * 5
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", f"--nbmake-timeout={limit}", "-p", "no:cacheprovider"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*command, str(NOTEBOOKS / f"{name}.ipynb")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
