"""Inputs on which every implementation of `decode` is judged: by the tests, and by the benchmark's gate."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.kernels.backend import Impl
from saetools.kernels.decode import decode
from saetools.kernels.oracle import assert_as_good, on


@dataclass(frozen=True)
class Case:
    name: str
    values: Tensor
    indices: Tensor
    W_FD: Tensor
    offsets_N1: Tensor | None = None

    def dense(self) -> Tensor:
        """code_NF in float64."""
        n = len(self.values) if self.offsets_N1 is None else len(self.offsets_N1) - 1
        out = torch.zeros(n, len(self.W_FD), dtype=torch.float64)
        lengths = torch.full((n,), self.values.shape[1]) if self.offsets_N1 is None else self.offsets_N1.diff().long()
        rows = torch.arange(n).repeat_interleave(lengths)
        flat = (rows, self.indices.reshape(-1).long())
        return out.index_put(flat, self.values.reshape(-1).double(), accumulate=True)


def random_case(name: str, N: int, K: int, F: int, D: int) -> Case:
    g = torch.Generator().manual_seed(N + K * 11 + F * 5 + D)
    values = torch.randn(N, K, generator=g)
    indices = torch.rand(N, F, generator=g).argsort(1)[:, :K].int()
    return Case(name, values, indices, torch.randn(F, D, generator=g))


def cases() -> Iterator[Case]:
    yield random_case("plain", 37, 8, 512, 24)
    yield random_case("odd sizes", 33, 5, 1013, 7)
    yield random_case("k=1", 19, 1, 130, 5)
    yield random_case("k=F", 5, 17, 17, 6)
    yield random_case("no rows", 0, 2, 9, 3)
    yield random_case("no slots", 4, 0, 9, 3)
    base = random_case("", 20, 6, 300, 12)
    sparse = torch.where(base.values > 0, base.values, 0)
    yield Case("unused slots", sparse, torch.where(sparse > 0, base.indices, 0).int(), base.W_FD)
    yield Case("not contiguous", base.values.T.contiguous().T, base.indices, torch.randn(300, 24)[:, ::2])
    lengths = torch.tensor([0, 3, 5, 0, 1, 7, 0])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    yield Case("ragged", base.values.reshape(-1)[:16], base.indices.reshape(-1)[:16], base.W_FD, offsets)


def verify(impl: Impl, dtype: torch.dtype = torch.float32, device: str = "cpu", most: int | None = None) -> None:
    """AssertionError at the first case whose value or gradients are worse than plain PyTorch's."""
    for case in on(device, cases(), most):
        verify_case(case, impl, dtype)


def verify_case(case: Case, impl: Impl, dtype: torch.dtype = torch.float32) -> None:
    """As `verify`, for one case."""
    values, W = case.values.to(dtype).requires_grad_(), case.W_FD.to(dtype).requires_grad_()
    out = decode(values, case.indices, W, case.offsets_N1, impl=impl)
    used = Case(case.name, values.detach(), case.indices, W.detach(), case.offsets_N1)
    code, atoms = used.dense(), W.detach().double()
    plain = code.to(dtype) @ W.detach()
    assert_as_good(f"{case.name}, {impl}", out.detach(), plain, code @ atoms)
    g = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(dtype)
    dvalues, dW = torch.autograd.grad(out, (values, W), g)
    assert_as_good(f"{case.name}, {impl}: dW", dW, code.to(dtype).T @ g, code.T @ g.double())
    n = len(out)
    lengths = torch.full((n,), values.shape[1]) if case.offsets_N1 is None else case.offsets_N1.diff().long()
    place = (torch.arange(n).repeat_interleave(lengths), case.indices.reshape(-1).long())
    used_slots = (values.detach() != 0).reshape(-1)
    exact, plain = (g.double() @ atoms.T)[place] * used_slots, (g @ W.detach().T)[place] * used_slots
    assert_as_good(f"{case.name}, {impl}: dvalues", dvalues.reshape(-1) * used_slots, plain, exact)
