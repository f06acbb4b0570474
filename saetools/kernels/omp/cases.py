"""Inputs on which every implementation of `omp` is judged: by the tests, and by the benchmark's gate."""

from collections.abc import Iterator

import torch

from saetools.kernels.backend import Impl
from saetools.kernels.gram import Gram
from saetools.kernels.matching_pursuit.cases import Case, random_case
from saetools.kernels.omp import omp
from saetools.kernels.oracle import assert_as_good, on
from saetools.kernels.workspace import Workspace


def cases() -> Iterator[Case]:
    yield random_case("absolute", 37, 12, 130, 6, rule="absolute")
    yield random_case("nonnegative", 37, 12, 130, 6, rule="nonnegative")
    yield random_case("k=1", 9, 4, 10, 1)
    yield random_case("to a tolerance", 37, 12, 130, 9, tolerance=1.5)
    yield random_case("one atom", 9, 4, 1, 1)
    yield random_case("no rows", 0, 4, 7, 2)
    base = random_case("", 30, 6, 40, 3)
    yield Case("twin atoms", base.x_ND, base.W_FD[:20].repeat(2, 1), 4)
    yield Case("not contiguous", base.x_ND.T.contiguous().T, base.W_FD.T.contiguous().T, 3)


def verify(impl: Impl, with_gram: bool, device: str = "cpu", most: int | None = None) -> None:
    """AssertionError at the first case that is worse than the plain reference in float32, gradients included."""
    for case in on(device, cases(), most):
        verify_case(case, impl, with_gram)


def verify_case(case: Case, impl: Impl, with_gram: bool) -> None:
    """As `verify`, for one case. Equal atoms are one: which of them a product puts first is the machine's rounding."""
    results, atom_F = [], torch.unique(case.W_FD.detach(), dim=0, return_inverse=True)[1]
    for which, dtype in ((impl, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        x, W = (t.to(dtype).requires_grad_() for t in (case.x_ND, case.W_FD))
        gram = Gram(W.detach()) if with_gram and which == impl else None
        values, indices, residual = omp(
            x, W, case.n_steps, **case.options, gram=gram, impl=which, workspace=Workspace(poison=True)
        )
        loss = (values * torch.cos(torch.arange(values.numel())).view_as(values)).sum() + residual.square().sum()
        dx, dW = torch.autograd.grad(loss, (x, W))
        found = {"values": values, "residual": residual, "dx": dx, "dW": torch.zeros_like(dW).index_add(0, atom_F, dW)}
        results.append((atom_F[indices.long()], {name: t.detach() for name, t in found.items()}))
    name = f"{case.name}, {impl}, gram={with_gram}"
    assert torch.equal(results[0][0], results[2][0]), f"{name}: other atoms are chosen"
    for part in results[0][1]:
        assert_as_good(f"{name}: {part}", *(r[1][part] for r in results))
