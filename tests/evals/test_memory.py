"""Peak memory does not grow with the number of tokens."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
import torch
sys.path.insert(0, {here!r})
from small_hosts import BlockRows
from saetools.activations.base import ActivationBatch
from saetools.dictionaries.topk import TopK
from saetools.evals.base import Subject, make_evaluation
from saetools.evals.run import run_evaluations

torch.set_num_threads(1)
N = int(sys.argv[1])

class Endless(BlockRows):
    "Rows made as they are read; 100 to a document."
    def batches(self, start=0):
        for number in range(start, N // 4096):
            rows = torch.arange(number * 4096, (number + 1) * 4096)
            x = torch.randn(4096, 32, generator=torch.Generator().manual_seed(number)) + 1
            yield number, ActivationBatch(x, torch.stack([rows // 100, rows % 100], 1))

source = Endless(torch.randn(2000, 32))
made = [make_evaluation(name, n_tokens=N) for name in ("reconstruction", "sparsity", "geometry")]
records = run_evaluations(Subject(TopK(TopK.configure(n_features=128, k=8), 32), source.spec, source), made)
assert next(r.n for r in records if r.name == "fvu") == N // 4096 * 4096
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_times_the_rows_take_the_same_memory() -> None:
    def peak_mib(n: int) -> float:
        program = PROGRAM.format(here=str(Path(__file__).parent))
        found = subprocess.run([sys.executable, "-c", program, str(n)], check=True, capture_output=True, text=True)
        return int(found.stdout) / 1024

    peak_mib(8192)  # what numba compiles is compiled once
    few, many = peak_mib(100_000), peak_mib(1_000_000)
    assert many < few + 40, "900,000 rows of 128 bytes would be 110 MiB"
