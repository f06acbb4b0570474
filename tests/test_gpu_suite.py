"""`scripts/gpu_suite.py` without a GPU: that its parts fit together, and import with what a bare machine has.

Triton's interpreter runs the kernels; events, graphs and memory of the device are played. Figures mean nothing here.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import BLOCKER

ROOT = Path(__file__).parents[1]

BLOCKED = "transformer_lens transformers datasets wandb plotly pydantic jsonargparse scipy sklearn yaml"
PLAYED = (
    BLOCKER.format(blocked=set(BLOCKED.split()))
    + """
import os, sys, time
os.environ["TRITON_INTERPRET"] = "1"
import torch
from scripts import gpu_baselines, gpu_checks, gpu_measure, gpu_step_checks, gpu_suite, gpu_timings, gpu_tuning

for module in (gpu_checks, gpu_measure, gpu_step_checks, gpu_timings, gpu_tuning):
    module.DEVICE = "cpu"
"""
)


def run_played(code: str, timeout: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PLAYED + code], capture_output=True, text=True, cwd=ROOT, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_trainers_step_is_checked_on_a_bare_machine() -> None:
    pytest.importorskip("triton")
    run_played(
        """
from saetools.kernels.topk_step import triton as kernels
from tests.training.stand_in import StandIn
assert gpu_step_checks.check_rehearsal(N=8, D=16, F=64, k=2) == ""
kernels.DeviceStep = StandIn
for selection in ("per_row", "global"):
    assert (why := gpu_step_checks.check_captured(selection, N=64, D=32, F=256, k=4)) == "", why
""",
        timeout=120,
    )


def test_a_failed_check_keeps_back_what_goes_by_it(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    told = run_played(
        f"""
ran = []
torch.cuda.is_available, torch.cuda.empty_cache = (lambda: True), (lambda: None)
gpu_suite.facts = lambda commit: {{"commit": commit}}
gpu_suite.ceilings = lambda report: gpu_measure.Ceilings(1e12, 1e11)
gpu_suite.kernel_checks = lambda: {{"decode": {{"fine": lambda: None}}, "pursuit": {{"raises": lambda: 1 / 0}}}}
gpu_suite.step_checks = lambda: {{"trainer": {{"says": lambda: "off by 2"}}}}
def timed(what):
    def work(report, shape, device):
        if what == "AuxK":
            raise RuntimeError("no room")
        ran.append(what)
    return work
gpu_suite.TIMINGS = {{what: (timed(what), parts) for what, (_, parts) in gpu_suite.TIMINGS.items()}}
sys.argv = ["gpu_suite.py", "--out", {str(tmp_path)!r}, "--shapes", "a", "--workers", "0"]
assert gpu_suite.main() == 1
print("ran", ran)
""",
        timeout=120,
    )
    assert "ran ['steps', 'mutual choice', 'other designs', 'kernels', 'dense decode', 'selections']" in told
    rows = (tmp_path / "gpu.csv").read_text()
    for row in ("division by zero", "off by 2", "no room", "checks failed: trainer", "checks failed: pursuit"):
        assert row in rows, row


def test_kernels_are_compiled_beforehand_by_every_check_and_shape() -> None:
    pytest.importorskip("triton")
    run_played(
        """
import subprocess
started, done = [], []
class Process:
    def __init__(self, command, **options): started.append(command)
    def wait(self): done.append(self)
gpu_suite.subprocess.Popen = Process
gpu_suite.compile_beforehand(3, "ab")
assert len(started) == len(done) == 5 and all(command[2:4] == ["--workers", "0"] for command in started)
assert [command[command.index("--shapes") + 1] for command in started] == ["", "", "", "a", "b"]
assert all(("--skip-checks" in command) == (number >= 3) for number, command in enumerate(started))
ran = []
def named(names): return {name: (lambda name=name: ran.append(name)) for name in names}
checks = {"x": named("ab"), "y": named("cde")}
gpu_suite.kernel_checks, gpu_suite.step_checks = (lambda: checks), dict
for command in started[:3]:
    at = command.index("--checks")
    assert gpu_suite.failed_parts(gpu_measure.Report(), int(command[at + 1]), int(command[at + 2])) == set()
assert sorted(ran) == list("abcde")
""",
        timeout=120,
    )


def test_a_timeline_says_what_waits_for_what() -> None:
    pytest.importorskip("triton")
    told = run_played(
        """
from types import SimpleNamespace as Made
from scripts.gpu_timeline import table
spans = [(10.0, 30.0, "product"), (12.0, 13.5, "beside"), (31.0, 32.0, "next")]
print(table([Made(name=name, time_range=Made(start=start, end=end)) for start, end, name in spans]))
""",
        timeout=120,
    )
    rows = [line.split() for line in told.splitlines()]
    assert rows == [
        ["0.0", "20.0", "0.0", "product"],
        ["2.0", "1.5", "-18.0", "beside"],
        ["21.0", "1.0", "1.0", "next"],
    ]


@pytest.mark.slow
def test_everything_is_timed(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    told = run_played(
        f"""
import tests.kernels.conftest  # a faster interpreter
from saetools.kernels.topk_step.triton import DeviceStep

class Event:
    def __init__(self, **options): self.at = 0.0
    def record(self, *stream): self.at = time.perf_counter()
    def elapsed_time(self, other): return 1e3 * (other.at - self.at)
    def synchronize(self): pass

class Graph:
    def __init__(self, step): self.step = step
    def replay(self):
        self.step.launch()
        self.step.n_launched -= 1

def capture(step):
    kept = [t.clone() for t in step._small()]
    step.prime()
    for tensor, value in zip(step._small(), kept):
        tensor.copy_(value)
    step.graph = Graph(step)

cuda, DeviceStep.capture = torch.cuda, capture
cuda.Event, cuda.is_available, cuda.get_device_name = Event, (lambda: True), (lambda index: "played")
for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode"):
    setattr(cuda, name, lambda *mode: None)
cuda.max_memory_allocated = lambda: 1 << 30
gpu_measure.SHAPES.clear()
gpu_measure.SHAPES["a"] = (8, 16, 64, 1)
gpu_measure.AUX_K = gpu_timings.AUX_K = 8
once = gpu_measure.times
for module in (gpu_measure, gpu_timings, gpu_tuning):
    module.times = lambda work, repeats=1, warm=0: once(work, 1, 0)
gpu_suite.ceilings = lambda report: gpu_measure.Ceilings(1e12, 1e11)
gpu_suite.kernel_checks, gpu_suite.step_checks = (lambda: {{"decode": {{"fine": lambda: None}}}}), dict
sys.argv = ["gpu_suite.py", "--out", {str(tmp_path)!r}, "--shapes", "a", "--workers", "0"]
assert gpu_suite.main() == 0
""",
        timeout=1500,
    )
    for row in ("step: exact clip, AuxK at 10 % dead, graph", "mutual choice: captured against eager", "ours against"):
        assert row in told
