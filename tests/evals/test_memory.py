"""Peak memory does not grow with the number of tokens."""

import subprocess
import sys
from pathlib import Path

import pytest

OF_ROWS = """
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


OF_HOST = """
import resource, sys
import torch
sys.path.insert(0, {here!r})
from small_hosts import by_name, host_subject
from saetools.evals.base import make_evaluation
from saetools.evals.run import run_evaluations

torch.set_num_threads(1)
N = int(sys.argv[1])
subject = host_subject(n=N // 20, host_batch=64, context=64)
sizes = dict(
    loss_recovered=dict(n_tokens=N, n_read_tokens=N, n_mean_tokens=N),
    interpretability=dict(n_tokens=N),
    steering=dict(n_read_tokens=N),
)
records = by_name(run_evaluations(subject, [make_evaluation(name, **size) for name, size in sizes.items()]))
assert 0.8 * N < records["ce_spliced"].n < N
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mib(program: str, n: int) -> float:
    program = program.format(here=str(Path(__file__).parent))
    found = subprocess.run([sys.executable, "-c", program, str(n)], check=True, capture_output=True, text=True)
    return int(found.stdout) / 1024


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "warm", "few", "many"),
    [(OF_ROWS, 8192, 100_000, 1_000_000), (OF_HOST, 4000, 20_000, 200_000)],
    ids=["rows", "host"],
)
def test_ten_times_the_tokens_take_the_same_memory(program: str, warm: int, few: int, many: int) -> None:
    """900,000 rows of 128 bytes would be 110 MiB; logits, rows and codes of 180,000 tokens took 190 MiB."""
    peak_mib(program, warm)  # what numba compiles is compiled once
    assert peak_mib(program, many) < peak_mib(program, few) + 40
