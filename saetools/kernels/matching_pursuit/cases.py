"""Inputs on which every implementation of `matching_pursuit` is judged: by the tests, and by the benchmark's gate."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saetools.kernels.backend import Impl
from saetools.kernels.matching_pursuit import Gram, matching_pursuit
from saetools.kernels.oracle import assert_as_good, on
from saetools.kernels.workspace import Workspace


@dataclass(frozen=True)
class Case:
    name: str
    x_ND: Tensor
    W_FD: Tensor
    n_steps: int
    options: dict[str, Any] = field(default_factory=dict)


def random_case(name: str, N: int, D: int, F: int, n_steps: int, **options: Any) -> Case:
    g = torch.Generator().manual_seed(N + D * 11 + F * 5)
    W = normalize(torch.randn(F, D, generator=g), dim=1)
    return Case(name, torch.randn(N, D, generator=g), W, n_steps, options)


def cases() -> Iterator[Case]:
    for rule in ("signed", "nonnegative", "absolute"):
        yield random_case(rule, 37, 12, 130, 6, rule=rule)
        yield random_case(f"{rule}, each atom once", 21, 9, 33, 7, rule=rule, reselect=False)
    yield random_case("to a tolerance", 37, 12, 130, 9, rule="absolute", tolerance=1.5)
    yield random_case("more steps than width", 9, 4, 20, 12, rule="nonnegative", tolerance=0.5)
    yield random_case("one atom", 9, 4, 1, 1, rule="absolute")
    yield random_case("no rows", 0, 4, 7, 2)
    yield random_case("no steps", 5, 4, 7, 0)
    base = random_case("", 30, 6, 40, 4)
    yield Case("not contiguous", base.x_ND.T.contiguous().T, base.W_FD.T.contiguous().T, 4)
    yield Case("zero rows", torch.cat([torch.zeros(2, 6), base.x_ND]), base.W_FD, 3, {"rule": "absolute"})


def verify(impl: Impl, with_gram: bool, device: str = "cpu", most: int | None = None) -> None:
    """AssertionError at the first case that is worse than the plain reference in float32, gradients included."""
    for case in on(device, cases(), most):
        verify_case(case, impl, with_gram)


def verify_case(case: Case, impl: Impl, with_gram: bool) -> None:
    """As `verify`, for one case."""
    results = []
    for which, dtype in ((impl, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        x, W = (t.to(dtype).requires_grad_() for t in (case.x_ND, case.W_FD))
        gram = Gram(W.detach()) if with_gram and which == impl else None
        values, indices, residual = matching_pursuit(
            x, W, case.n_steps, **case.options, gram=gram, impl=which, workspace=Workspace(poison=True)
        )
        loss = (values * torch.cos(torch.arange(values.numel())).view_as(values)).sum() + residual.square().sum()
        dx, dW = torch.autograd.grad(loss, (x, W), materialize_grads=True)
        found = {"values": values, "explained": x - residual, "dx": dx, "dW": dW}
        results.append((indices, {name: t.detach() for name, t in found.items()}))
    name = f"{case.name}, {impl}, gram={with_gram}"
    same_N = (results[0][0] == results[2][0]).all(1) & (results[1][0] == results[2][0]).all(1)
    assert same_N.float().mean() > 0.9 or not len(same_N), f"{name}: other atoms are chosen"
    if not same_N.all():
        return  # a near-tie went another way: later steps cannot be compared
    for part in results[0][1]:
        assert_as_good(f"{name}: {part}", *(r[1][part] for r in results))
