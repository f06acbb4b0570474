"""10,000 structured mutations of files: FormatError, or a dictionary that works; of ours: FormatError, or the same one.

A mutation may leave a file that says something else and valid (another k, tensors exchanged): other libraries'
files carry no checksum. Ours do, so there nothing but an error or the identical dictionary is allowed.
"""

import random
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import saetools
from saetools.errors import FormatError
from saetools.formats import pt, pt_sandbox
from saetools.formats.native import save_dictionary
from saetools.kernels.decode import decode
from saetools.kernels.matching_pursuit import Gram, matching_pursuit
from tests.formats.mutations import MUTATE

GOLDEN = Path(__file__).parent / "golden"
FOREIGN = {
    "saelens-topk-f32": "",
    "saelens-jumprelu-f32": "",
    "saelens-gated-bf16": "",
    "saelens-batchtopk-checkpoint-f32": "",
    "saelens-matching-pursuit-f32": "",
    "sparsify-f32": "",
    "llama-scope-f32": "",
    "gemma-scope-f32": "",
    "gemma-scope-2-bf16": "",
    "dl-topk-f32": "",
    "dl-matryoshka-f32": "",
    "dl-gated-f32": "",
    "qwen-scope-f32": "layer4.sae.pt",
    "overcomplete-jump-f32": "sae.pt",
    "overcomplete-topk-state-f32": "sae.pt",
}
X_ND = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
SECONDS = 2.0
SPARE_BYTES = 100 << 20


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox's program within this process: thousands of times, and what it raises is what it would say."""

    def run(path: Path, out: Path, objects: list[str]) -> None:
        try:
            pt_sandbox.convert(str(path), str(out), objects)
        except Exception as error:
            raise FormatError(f"{path}: {error}") from error

    monkeypatch.setattr(pt, "_run_sandbox", run)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail where the block uses more CPU time (other processes on the machine do not count)."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Kernels that these files ask for, and those that only damaged ones do: compiling them is not what is timed."""
    for name, source in FOREIGN.items():
        saetools.load(GOLDEN / name / source, allow_pt=True, k=3)(X_ND)
    W, infinite = torch.eye(8), torch.full((8, 8), torch.inf)
    decode(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), W)
    for atoms, gram in ((W, None), (infinite, None), (W, Gram(W))):
        matching_pursuit(W, atoms, 2, gram=gram)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def outcome(source: Path) -> tuple[str, torch.Tensor | None]:
    """(error or loaded, reconstruction); any exception but FormatError passes through and fails the test."""
    with at_most(SECONDS):
        try:
            dictionary = saetools.load(source, allow_pt=True, k=3)
        except FormatError as error:
            assert str(error)
            return "refused", None
        x_ND = X_ND if dictionary.d_model == 6 else torch.ones(3, dictionary.d_model)
        recon_ND = dictionary(x_ND)
    assert recon_ND.shape == x_ND.shape
    return "loaded", recon_ND


def mutated_outcomes(work: Path, source: str, n: int, seed: str) -> Iterator[tuple[str, torch.Tensor | None]]:
    """The outcome of each of n mutations of the files in `work`, restored after each."""
    files = [
        f for f in sorted(work.rglob("*")) if f.is_file() and f.suffix in MUTATE and f.name != "expected.safetensors"
    ]
    whole = {file: file.read_bytes() for file in files}
    for number in range(n):
        draw = random.Random(f"{seed}-{number}")
        file = draw.choice(files)
        file.write_bytes(MUTATE[file.suffix](whole[file], draw))
        yield outcome(work / source)
        file.write_bytes(whole[file])


SIZES = [pytest.param(500, id="500"), pytest.param(10_000, id="10000", marks=pytest.mark.slow)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n", SIZES)
def test_mutations_are_refused_or_harmless(tmp_path: Path, n: int) -> None:
    torch.set_num_threads(1)
    share = n // (len(FOREIGN) + 5)
    seen: Counter[str] = Counter()
    for name in FOREIGN:
        shutil.copytree(GOLDEN / name, tmp_path / name)
        (tmp_path / name / "expected.safetensors").unlink()
        assert outcome(tmp_path / name / FOREIGN[name])[0] == "loaded"
    dictionary = saetools.load(GOLDEN / "saelens-topk-f32")
    save_dictionary(dictionary, tmp_path / "own", None)
    expected = outcome(tmp_path / "own")[1]
    start = peak_bytes()
    for name, source in FOREIGN.items():
        for said, _ in mutated_outcomes(tmp_path / name, source, share, name):
            seen[said] += 1
    for said, recon in mutated_outcomes(tmp_path / "own", "", n - sum(seen.values()), "own"):
        seen[said] += 1
        assert recon is None or (expected is not None and torch.equal(recon, expected))
    assert sum(seen.values()) == n and seen["refused"] > 0.6 * n and seen["loaded"] > 0.01 * n, seen
    assert peak_bytes() - start < SPARE_BYTES + 2 * (4 << 20)
