"""Inputs on which every implementation of `decode_loss` is judged: by the tests, and by the benchmark's gate."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saetools.kernels.backend import Impl
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.oracle import assert_as_good, on, with_gaps
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace


@dataclass(frozen=True)
class Case:
    name: str
    x_ND: Tensor
    code: Sparse
    W_FD: Tensor
    b_D: Tensor
    group_M: Tensor | None = None
    weights: tuple[float, ...] = (1.0,)

    def to(self, dtype: torch.dtype) -> "Case":
        code = Sparse(self.code.values_M.to(dtype), self.code.indices_M, self.code.offsets_N1)
        tensors = (self.x_ND.to(dtype), code, self.W_FD.to(dtype), self.b_D.to(dtype))
        return Case(self.name, *tensors, self.group_M, self.weights)


def random_case(name: str, N: int, K: int, F: int, D: int, weights: tuple[float, ...] = (1.0,)) -> Case:
    g = torch.Generator().manual_seed(N + K * 11 + F * 5 + D)
    values = torch.randn(N, K, generator=g).relu()
    indices = torch.rand(N, F, generator=g).argsort(1)[:, :K]
    code = Sparse.fixed(values, torch.where(values > 0, indices, 0).int())
    W = torch.nn.functional.normalize(torch.randn(F, D, generator=g), dim=1)
    group = torch.randint(len(weights), (N * K,), generator=g, dtype=torch.uint8)
    return Case(name, torch.randn(N, D, generator=g), code, W, torch.randn(D, generator=g), group, weights)


def cases() -> Iterator[Case]:
    yield random_case("plain", 37, 8, 512, 24)
    yield random_case("odd sizes", 33, 5, 1013, 7)
    yield random_case("k=1", 19, 1, 130, 5)
    yield random_case("k=F", 5, 17, 17, 6)
    yield random_case("no rows", 0, 2, 9, 3)
    yield random_case("nested groups", 21, 9, 40, 8, weights=(0.5, 0.25, 2.0))
    yield replace(
        nested := random_case("a row for each group", 14, 9, 40, 8, (1.0, 0.0, 2.0)),
        x_ND=torch.stack([nested.x_ND, nested.x_ND.roll(1, 0), -nested.x_ND], dim=1),
    )
    base = random_case("", 20, 6, 300, 12)
    offsets = torch.nn.functional.pad(torch.tensor([0, 3, 50, 0, 17, 50]).cumsum(0), (1, 0))
    yield Case("ragged", base.x_ND[:6], Sparse(base.code.values_M, base.code.indices_M, offsets), base.W_FD, base.b_D)
    yield Case("transposed", base.x_ND.T.contiguous().T, base.code, base.W_FD.T.contiguous().T, base.b_D)
    yield with_gaps(random_case("not contiguous", 11, 4, 30, 8, weights=(0.5, 0.25)))


def verify(impl: Impl, dtype: torch.dtype = torch.float32, device: str = "cpu", most: int | None = None) -> None:
    """AssertionError at the first case whose results are worse than the plain reference's in the same dtype."""
    for case in on(device, cases(), most):
        if impl != "triton" or case.x_ND.dim() == 2:  # it has no rows for each group
            verify_case(case, impl, dtype)


def verify_case(case: Case, impl: Impl, dtype: torch.dtype = torch.float32) -> None:
    """As `verify`, for one case."""
    results = []
    for which, each in ((impl, dtype), ("reference", dtype), ("reference", torch.float64)):
        c = case.to(each)
        results.append(
            decode_loss(
                *(c.x_ND, c.code, c.W_FD, c.b_D),
                group_M=c.group_M,
                weights=c.weights,
                impl=which,
                workspace=Workspace(poison=True),
            )
        )
    for name, got, plain, exact in zip(("loss", "pull", "dots"), *results):
        assert_as_good(f"{case.name}, {impl}: {name}", got, plain, exact)
