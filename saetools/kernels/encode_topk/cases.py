"""Inputs on which every implementation of `encode_topk` is judged: by the tests, and by the benchmark's gate."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.kernels.backend import Impl
from saetools.kernels.encode_topk import Precision, encode_topk
from saetools.kernels.oracle import assert_as_good, on
from saetools.kernels.workspace import Workspace


@dataclass(frozen=True)
class Case:
    name: str
    x_ND: Tensor
    W_FD: Tensor
    b_F: Tensor
    k: int


def random_case(name: str, N: int, D: int, F: int, k: int) -> Case:
    g = torch.Generator().manual_seed(N * 7919 + D * 31 + F + k)
    return Case(name, torch.randn(N, D, generator=g), torch.randn(F, D, generator=g), torch.randn(F, generator=g), k)


def cases() -> Iterator[Case]:
    yield random_case("plain", 37, 24, 512, 8)
    yield random_case("odd sizes", 33, 7, 1013, 5)
    yield random_case("k=1", 19, 5, 130, 1)
    yield random_case("k=F", 5, 6, 17, 17)
    yield random_case("one row", 1, 3, 9, 2)
    yield random_case("no rows", 0, 3, 9, 2)
    yield random_case("one feature", 4, 3, 1, 1)
    yield random_case("several chunks", 600, 3, 40, 3)
    base = random_case("", 21, 6, 300, 12)
    yield Case("many ties", base.x_ND.round(), base.W_FD.round(), base.b_F.round(), 12)
    yield Case("all equal", torch.zeros(9, 6), base.W_FD, torch.ones(300), 12)
    yield Case("all negative", base.x_ND, base.W_FD, base.b_F - 40, 12)
    yield Case("few positive", base.x_ND, base.W_FD, base.b_F - 5, 12)
    yield Case("not contiguous", base.x_ND.T.contiguous().T, torch.randn(300, 12)[:, ::2], base.b_F.repeat(2)[::2], 12)


def exact_pre(case: Case) -> Tensor:
    """pre_NF in float64."""
    return case.x_ND.double() @ case.W_FD.double().T + case.b_F.double()


def verify(
    impl: Impl,
    precision: Precision = "fp32",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    most: int | None = None,
) -> None:
    """AssertionError at the first case that `impl` does not solve as well as plain PyTorch."""
    for case in on(device, cases(), most):
        for relu in (True, False):
            verify_case(case, impl, precision, dtype, relu)


def verify_case(case: Case, impl: Impl, precision: Precision, dtype: torch.dtype, relu: bool) -> None:
    """As `verify`, for one case."""
    name = f"{case.name}, relu={relu}, {impl}, {precision}"
    x, W, b = case.x_ND.to(dtype), case.W_FD.to(dtype), case.b_F.to(dtype)
    values, indices = encode_topk(
        x, W, b, case.k, relu=relu, precision=precision, margin=4.0, impl=impl, workspace=Workspace(poison=True)
    )
    case = Case(case.name, x, W, b, case.k)
    pre = exact_pre(case)
    best = pre.topk(case.k, dim=1).values
    plain = torch.topk(x @ W.T + b, case.k, dim=1).values
    if relu:
        best, plain = best.relu(), plain.relu()
    assert indices.dtype == torch.int32, name
    assert_as_good(f"{name}: values", values.sort(1, descending=True).values, plain, best)
    used = values != 0 if relu else torch.ones_like(values, dtype=torch.bool)
    assert not indices[~used].any(), f"{name}: an unused slot has an index"
    at_indices = pre.gather(1, indices.long())
    assert_as_good(
        f"{name}: indices", torch.where(used, at_indices, 0).to(dtype), values.detach(), torch.where(used, values, 0)
    )
    _verify_ties(name, case, values, indices, used)


def _verify_ties(name: str, case: Case, values: Tensor, indices: Tensor, used: Tensor) -> None:
    """Where products are exact (whole numbers), the chosen set is the one with the lowest indices, and has no twins."""
    sets = [set(row[kept].tolist()) for row, kept in zip(indices, used)]
    for row, chosen in enumerate(sets):
        assert len(chosen) == int(used[row].sum()), f"{name}: row {row} holds a feature twice"
    if case.name not in ("many ties", "all equal"):
        return
    pre = exact_pre(case)
    order = torch.sort(pre, dim=1, descending=True, stable=True).indices[:, : case.k]
    for row, chosen in enumerate(sets):
        expected = {int(i) for i in order[row] if used[row].all() or pre[row, i] > 0}
        assert chosen == expected, f"{name}: row {row} holds {sorted(chosen)}, ties to the lowest: {sorted(expected)}"
