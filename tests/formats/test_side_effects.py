"""Whatever a file asks for, loading it runs nothing and writes nowhere: seen by an audit hook, which nothing evades."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("hostile_program.py")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX")
def test_an_audit_hook_sees_nothing(tmp_path: Path) -> None:
    (tmp_path / "work" / "files").mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path / "work" / "files")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["seen"] == [] and not told["trace"] and not told["evil"]
    assert told["n_sources"] > 40 and told["n_refused"] == 2 * told["n_sources"]
