"""One number of threads, torch's, for torch and for the compiled kernels."""

import errno
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from saetools.kernels.backend import exclusive, operation
from saetools.kernels.sparse import Sparse

numba = pytest.importorskip("numba", reason="the kernels run on stock torch without numba")


@pytest.mark.parametrize("n", [1, 2])
def test_compiled_kernels_use_the_threads_of_torch(n: int) -> None:
    torch.set_num_threads(n)
    with exclusive():
        assert numba.get_num_threads() == min(n, numba.config.NUMBA_NUM_THREADS)
    assert torch.get_num_threads() == n


def test_the_gpu_of_the_tensors_is_the_current_one_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary loaded to `cuda:1` was encoded with by launches on the first GPU."""
    entered = []

    def device(which: torch.device) -> nullcontext[None]:
        entered.append(which)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", device)
    run = operation(lambda *values, **named: len(entered))
    with FakeTensorMode():
        tensors = [torch.empty(2, device=f"cuda:{number}") for number in (1, 2)]
    assert run(*tensors) == 1 and run(code=Sparse(*tensors, tensors[0])) == 2 and run(0.5, torch.ones(1)) == 2
    assert entered == [torch.device("cuda", 1)] * 2


def test_machine_code_older_than_a_source_is_forgotten(tmp_path: Path) -> None:
    from saetools.kernels.compiled import forget_outdated

    for number, name in enumerate(("kept/a.nbi", "kept/a.nbc", "one/two.py", "kept/b.nbi")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    forget_outdated(tmp_path, tmp_path / "kept")
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["b.nbi", "two.py"]


def test_machine_code_kept_elsewhere_is_forgotten_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NUMBA_CACHE_DIR says, or in the user's cache, it had outlived a change of what it calls."""
    from saetools.kernels import compiled

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def twice(v: float) -> float:
        return 2 * v

    kept_in = Path(compiled.serial(twice).stats.cache_path)
    assert kept_in.is_relative_to(tmp_path)
    (kept_in / "old.nbi").touch()
    os.utime(kept_in / "old.nbi", (1, 1))
    (kept_in / "new.nbi").touch()
    compiled.forget_outdated.cache_clear()
    assert compiled.serial(twice)(3.0) == 6.0
    assert (kept_in / "new.nbi").exists() and not (kept_in / "old.nbi").exists()


def test_kernels_run_where_machine_code_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A package in a read-only image, run by a user without a home."""
    from numba.core.caching import CacheImpl

    from saetools.kernels import compiled

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    compiled._say_not_kept.cache_clear()

    @compiled.serial
    def twice(v: float) -> float:
        return 2 * v

    assert twice(3.0) == 6.0
    assert "Set NUMBA_CACHE_DIR" in caplog.text


def test_kernels_run_whatever_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from saetools.kernels import compiled

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def twice(v: float) -> float:
        return v + v

    def fresh() -> object:
        return compiled.serial(twice)

    for v in (3, 0.5):
        assert fresh()(v) == 2 * v
    kept_in = Path(fresh().stats.cache_path)
    index, one, two = sorted(kept_in.glob("*.nbi")) + sorted(kept_in.glob("*.nbc"))
    two.write_bytes(one.read_bytes())  # what two processes that begin together do to each other
    assert fresh()(0.5) == 1.0
    for damaged in (index, one):
        damaged.write_bytes(b"")
        for v in (3, 0.5, 3):
            assert fresh()(v) == 2 * v
    again = fresh()
    assert again(3) == 6 and again.stats.cache_hits, "it is kept again"
    monkeypatch.setattr(compiled.FunctionCache, "_save_overload", raise_disk_full)
    compiled._say_not_kept.cache_clear()
    assert fresh()(1j) == 2j
    assert "cannot be kept" in caplog.text


def raise_disk_full(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_starting_the_pool_leaves_torch_its_number() -> None:
    """In a process of its own: numba's pool starts once, and sets OpenMP's number to all cores."""
    code = (
        "import torch; torch.set_num_threads(3)\n"
        "from saetools.kernels.backend import exclusive, operation\n"
        "with exclusive(): assert torch.get_num_threads() == 3, torch.get_num_threads()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)


def test_operations_are_not_traced() -> None:
    """Numba compiles within one: were its compiler traced into, this would end in a RecursionError."""

    @operation
    def doubled(x: torch.Tensor) -> torch.Tensor:
        assert not torch.compiler.is_compiling()
        fresh = numba.njit(lambda values: values * 2.0 + 0.5)
        return torch.from_numpy(fresh(x.numpy()))

    x = torch.randn(5)
    compiled = torch.compile(lambda x: doubled(x + 1) - 1, backend="eager")
    assert torch.equal(compiled(x), (x + 1) * 2 + 0.5 - 1)


def test_encoding_by_a_score_is_not_traced() -> None:
    from saetools.kernels.encode_topk import encode_by_score
    from saetools.kernels.score import Score

    x, W, b = torch.randn(5, 4), torch.randn(30, 4), torch.randn(30)
    compiled = torch.compile(lambda x: encode_by_score(x + 1, W, b, 3, Score("absolute"))[0] * 2, backend="eager")
    assert torch.equal(compiled(x), encode_by_score(x + 1, W, b, 3, Score("absolute"))[0] * 2)
