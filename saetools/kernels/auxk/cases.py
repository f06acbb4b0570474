"""Inputs on which every implementation of `auxk` is judged: by the tests, and by the benchmark's gate."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from saetools.kernels.auxk import auxk
from saetools.kernels.backend import Impl
from saetools.kernels.oracle import assert_as_good, on, with_gaps


@dataclass(frozen=True)
class Case:
    name: str
    tensors: tuple[Tensor, ...]  # x_ND, residual_ND, W_enc_FD, b_enc_F, W_dec_FD
    dead_A: Tensor
    k_aux: int


def random_case(name: str, N: int, D: int, F: int, A: int, k_aux: int) -> Case:
    g = torch.Generator().manual_seed(N + A * 11 + F * 5 + D)
    tensors = [torch.randn(shape, generator=g) for shape in ((N, D), (N, D), (F, D), (F,), (F, D))]
    return Case(name, tuple(tensors), torch.randperm(F, generator=g)[:A].sort().values, k_aux)


def cases() -> Iterator[Case]:
    yield random_case("more dead than k", 31, 12, 200, 40, 6)
    yield random_case("fewer dead than k", 31, 12, 200, 5, 6)
    yield random_case("one dead", 9, 7, 20, 1, 3)
    yield random_case("very many dead", 33, 8, 500, 300, 4)
    yield random_case("all dead", 16, 5, 30, 30, 8)
    yield random_case("more kept than there are", 9, 5, 30, 30, 40)
    yield with_gaps(random_case("not contiguous", 12, 6, 50, 20, 4))
    mixed = random_case("dead in any order", 12, 6, 50, 20, 4)
    yield replace(mixed, dead_A=mixed.dead_A.flip(0))


def verify(impl: Impl, device: str = "cpu", most: int | None = None) -> None:
    """AssertionError at the first case that is worse than the plain reference in float32."""
    for case in on(device, cases(), most):
        verify_case(case, impl)


def verify_case(case: Case, impl: Impl) -> None:
    """As `verify`, for one case."""
    results = []
    for which, dtype in ((impl, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        x, residual, W_enc, b_enc, W_dec = (t.to(dtype) for t in case.tensors)
        loss, extra = auxk(x, residual, W_enc, b_enc, W_dec, case.dead_A, case.k_aux, 0.7, impl=which)
        assert extra is not None
        assert torch.equal(extra.features_A, case.dead_A)
        gradients = {f.name: getattr(extra, f.name) for f in fields(extra) if f.name != "features_A"}
        results.append({"loss": loss} | gradients)
    for name in results[0]:
        assert_as_good(f"{case.name}, {impl}: {name}", *(r[name] for r in results))
