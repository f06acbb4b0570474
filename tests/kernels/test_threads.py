"""Threads, of the CPU and of Python; and life without numba."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saetools.kernels.auxk import auxk
from saetools.kernels.decode import decode
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import encode_topk
from saetools.kernels.gram import Gram
from saetools.kernels.omp import omp
from saetools.kernels.per_feature_topm import per_feature_topm
from saetools.kernels.sparse import Sparse

N, D, F, K = 150, 24, 700, 9


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=300)


def every_operation() -> list[Tensor]:
    """Results of those kernels that are not held to this in a test of their own, at sizes of many tasks."""
    g = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(shape, generator=g) for shape in ((N, D), (F, D), (F,)))
    values, indices = encode_topk(x, W, b, K, impl="numba")
    code = Sparse.fixed(values, indices)
    leaves = [t.clone().requires_grad_() for t in (values, W)]
    recon = decode(leaves[0], indices, leaves[1], impl="numba")
    chosen, _ = per_feature_topm(x, W, b, torch.arange(F) % 7, impl="numba")
    _, extra = auxk(x, x, W, b, W, torch.arange(0, F, 3), 4, 0.1, impl="numba")
    assert extra is not None
    return [
        *(values, indices, recon.detach(), *torch.autograd.grad(recon.square().sum(), leaves)),
        *(chosen.values_M, chosen.indices_M, chosen.offsets_N1),
        *decode_loss(x, code, W, b[:D], impl="numba"),
        *(extra.W_enc_AD, extra.W_dec_AD, extra.b_enc_A, extra.b_dec_D),
        *omp(x, W, 5, gram=Gram(W), impl="numba"),
    ]


def test_results_do_not_depend_on_threads() -> None:
    results = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        results.append(every_operation())
    for number, (one, two) in enumerate(zip(*results, strict=True)):
        assert torch.equal(one, two), f"result {number} differs between one thread and two"


def test_two_python_threads_take_turns() -> None:
    """Numba's own thread pool ends the process where two Python threads enter it at once."""
    done = run_python(
        """
        import threading, torch
        from saetools.kernels.encode_topk import encode_topk
        x, W, b = torch.randn(300, 8), torch.randn(500, 8), torch.zeros(500)
        expected = encode_topk(x, W, b, 5, impl="numba")[0]
        same = []
        def work():
            same.append(all(torch.equal(encode_topk(x, W, b, 5, impl="numba")[0], expected) for _ in range(60)))
        workers = [threading.Thread(target=work) for _ in range(3)]
        [w.start() for w in workers]
        [w.join() for w in workers]
        assert same == [True] * 3
        """,
        NUMBA_THREADING_LAYER="workqueue",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_process_computes() -> None:
    """A worker of torch's DataLoader, say: GNU's OpenMP ends a child that enters the threads of its parent."""
    done = run_python(
        """
        import os, threading, torch
        from saetools.kernels.backend import exclusive
        from saetools.kernels.encode_topk import encode_topk
        torch.set_num_threads(1)
        x, W, b = torch.randn(40, 16), torch.randn(900, 16), torch.zeros(900)
        expected = encode_topk(x, W, b, 7)[1].sort(1).values
        held, go_on = threading.Event(), threading.Event()
        def hold():
            with exclusive():
                held.set()
                go_on.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(2):
                    assert torch.equal(encode_topk(x, W, b, 7)[1].sort(1).values, expected)
                try:
                    encode_topk(x, W, b, 7, impl="numba")
                except ValueError as error:
                    assert "forked" in str(error)
                    code = 0
            finally:
                os._exit(code)
        go_on.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(encode_topk(x, W, b, 7, impl="numba")[1].sort(1).values, expected)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stock torch operations") == 1


def test_without_numba_stock_torch_runs_and_says_so_once() -> None:
    done = run_python(
        """
        import logging, sys
        sys.modules["numba"] = None  # importing it fails
        import importlib.util
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "numba" else found(name, *rest)
        logging.basicConfig(level=logging.WARNING)
        import torch
        from saetools.dictionaries.base import Progress
        from saetools.dictionaries.topk import TopK
        from saetools.kernels.backend import resolve
        from saetools.kernels.encode_topk import cases
        from saetools.training.optim import Adam
        from saetools.training.step import make_step, trained_parameters
        cases.verify("auto")
        topk = TopK(TopK.configure(n_features=40, k=4), 8, 0)
        step = make_step(topk, Adam(trained_parameters(topk)), 1.0, "auto")
        x = torch.randn(30, 8)
        progress = Progress(step=0, n_steps=9, n_tokens=900, dead_after_tokens=100)
        assert step(x, x, {}, topk.initial_state(), progress, 1e-3).applied
        print(step.provider, resolve("auto", x))
        try:
            resolve("numba", x)
        except ValueError as error:
            print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["fused-torch-fp32", "torch"]
    assert "needs numba (installed: False)" in done.stdout
    assert done.stderr.count("numba is not installed") == 1


def test_a_numba_that_cannot_be_imported_is_none(tmp_path: Path) -> None:
    """As one does that is older than the numpy beside it: every kernel had ended by its ImportError."""
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.0 or less. Got NumPy 2.4.')")
    done = run_python(
        """
        import os, sys
        sys.path.insert(0, os.environ["WITH_NUMBA"])
        from saetools.kernels.encode_topk import cases
        cases.verify("auto")
        """,
        WITH_NUMBA=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("numba cannot be imported (Numba needs NumPy 2.0 or less") == 1


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="known: auto, reference, torch, numba"):
        decode(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 2), impl="cuda")  # type: ignore[arg-type]
