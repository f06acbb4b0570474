"""Inputs on which every implementation of `swap_rows_` is judged: by the tests, and by the benchmark's gate."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.kernels.backend import Impl
from saetools.kernels.swap_rows import swap_rows_


@dataclass(frozen=True)
class Case:
    name: str
    table: Tensor
    slots_N: Tensor
    incoming: Tensor


def case(name: str, n_slots: int, n: int, *row: int, dtype: torch.dtype = torch.float32) -> Case:
    g = torch.Generator().manual_seed(n_slots + n)
    table, incoming = (torch.randn(m, *row, generator=g).mul(100).to(dtype) for m in (n_slots, n))
    return Case(name, table, torch.randperm(n_slots, generator=g)[:n], incoming)


def cases() -> Iterator[Case]:
    yield case("plain", 300, 210, 128)
    yield case("few bytes", 300, 70, 24)
    yield case("bf16, odd width", 200, 165, 257, dtype=torch.bfloat16)
    yield case("places", 50, 20, 2, dtype=torch.int64)
    yield case("numbers", 50, 20, dtype=torch.int64)
    yield case("bytes", 33, 1, 1, dtype=torch.uint8)
    yield case("all", 129, 129, 150)
    yield case("none", 10, 0, 3)
    yield case("no width", 10, 4, 0)
    wide = case("not contiguous", 90, 80, 512)
    yield Case(wide.name, wide.table[:, ::2].contiguous(), wide.slots_N, wide.incoming[:, ::2])


def verify(impl: Impl) -> None:
    """AssertionError at the first case in which a bit differs from plain indexing."""
    for one in cases():
        verify_case(one, impl)


def verify_case(one: Case, impl: Impl) -> None:
    """As `verify`, for one case."""
    table, taken = one.table.clone(), torch.full_like(one.incoming, 77, memory_format=torch.contiguous_format)
    swap_rows_(table, one.slots_N, one.incoming, taken, impl=impl)
    expected = one.table.clone()
    expected[one.slots_N] = one.incoming
    assert torch.equal(taken, one.table[one.slots_N]), f"{one.name}, {impl}: what was taken"
    assert torch.equal(table, expected), f"{one.name}, {impl}: what was left"
