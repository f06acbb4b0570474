"""Inputs on which every implementation of `global_topk` is judged: by the tests, and by the benchmark's gate."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.kernels.backend import Impl
from saetools.kernels.encode_topk import Precision
from saetools.kernels.global_topk import global_topk
from saetools.kernels.oracle import on
from saetools.kernels.score import Score
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace


@dataclass(frozen=True)
class Case:
    """Numbers are small and whole, so that products are exact and ties abound."""

    name: str
    x_ND: Tensor
    W_FD: Tensor
    b_F: Tensor
    score: Score | None = None


def _whole(name: str, N: int, D: int, F: int, span: int = 9, shift: int = 0, score: str | None = None) -> Case:
    g = torch.Generator().manual_seed(N + D * 31 + F)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-span, span + 1, shape, generator=g).float()

    x, W, b = integers(N, D), integers(F, D), integers(F) + shift
    scores = {None: None, "absolute": Score("absolute"), "gradient": Score("gradient", integers(N, D), W, 0.5)}
    return Case(name, x, W, b, scores[score])


def cases() -> Iterator[Case]:
    yield _whole("plain", 37, 8, 200)
    yield _whole("several chunks", 1100, 3, 50)
    yield _whole("odd sizes, many ties", 33, 3, 101, span=1)
    yield _whole("few positive", 20, 4, 60, shift=-150)
    yield _whole("none positive", 20, 4, 60, shift=-10_000)
    yield _whole("one row", 1, 4, 70)
    yield _whole("few features", 9, 4, 3)
    yield _whole("no rows", 0, 4, 70)
    yield _whole("absolute", 37, 8, 120, score="absolute")
    yield _whole("gradient", 37, 8, 120, score="gradient")
    plain = _whole("", 30, 6, 80)
    yield Case("not contiguous", plain.x_ND.T.contiguous().T, plain.W_FD.T.contiguous().T, plain.b_F)


def assert_same(name: str, got: Sparse, expected: Sparse) -> None:
    """AssertionError unless both codes hold the same slots in the same order."""
    for part in ("offsets_N1", "indices_M", "values_M"):
        a, b = getattr(got, part), getattr(expected, part)
        assert a.dtype == b.dtype, f"{name}: {part} is {a.dtype}, expected {b.dtype}"
        assert torch.equal(a, b), f"{name}: {part} differ from plain PyTorch's"


def verify(
    impl: Impl, precision: Precision = "fp32", device: str = "cpu", most: int | None = None, few: bool = False
) -> None:
    """AssertionError at the first case where `impl` does not equal the plain reference bit for bit.

    `few`: one number of slots for each case, without a guess and with one that is too high.
    """
    for case in on(device, cases(), most):
        arguments = (case.x_ND, case.W_FD, case.b_F)
        most = len(case.x_ND) * len(case.W_FD)
        for n_kept in {most // 20} if few else {0, 1, 7, most // 20, most}:
            expected, threshold = global_topk(*arguments, n_kept, score=case.score, impl="reference")
            for guess in (0.0, threshold * 10 + 5) if few else (0.0, threshold * 0.9, threshold * 10 + 5):
                got, reached = global_topk(
                    *arguments,
                    n_kept,
                    score=case.score,
                    precision=precision,
                    guess=guess,
                    impl=impl,
                    workspace=Workspace(poison=True),
                )
                name = f"{case.name}, {impl}, n_kept={n_kept}, guess={guess}"
                assert_same(name, got, expected)
                assert reached == threshold, f"{name}: threshold {reached}, expected {threshold}"
