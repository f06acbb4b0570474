"""The wheel holds all that a run needs: built here, installed elsewhere, and run there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_tiny_demo_runs_from_an_installed_wheel(tmp_path: Path) -> None:
    def run(*command: str, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("saetools-*.whl")
    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--target", str(site), str(wheel))
    where = run(sys.executable, "-c", "import saetools; print(saetools.__file__)", PYTHONPATH=str(site))
    assert where.startswith(str(site))

    run(
        sys.executable,
        *("-m", "saetools.cli", "quickstart", "--run.dir", "out", "--training.n_tokens", "20000"),
        *(
            "--dictionary.n_features",
            "256",
            "--activations.ring_rows",
            "8192",
            "--activations.calibration_rows",
            "4096",
        ),
        *("--evaluation.n_tokens", "4000", "--evaluation.n_ce_tokens", "2000", "--evaluation.n_features", "5"),
        PYTHONPATH=str(site),
    )
    for name in ("dictionary/model.safetensors", "eval.json", "metrics.jsonl", "dashboard.html"):
        assert (tmp_path / "out" / name).stat().st_size > 0
