"""Exchanging rows of a table: every implementation against plain indexing."""

import pytest
import torch

from saetools.kernels.backend import Impl, have_numba
from saetools.kernels.swap_rows import cases, swap_rows_

IMPLS = ["reference", "torch", "auto", *(["numba"] if have_numba() else [])]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", list(cases.cases()), ids=lambda case: case.name)
def test_cases(case: cases.Case, impl: Impl) -> None:
    cases.verify_case(case, impl)


def test_a_wrong_swap_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "swap_rows_", lambda table, slots, new, out, impl: out.copy_(table[slots]))
    with pytest.raises(AssertionError, match="what was left"):
        cases.verify("auto")


@pytest.mark.skipif(not have_numba(), reason="numba is not installed")
def test_no_float_is_changed_on_its_way() -> None:
    table = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]).repeat(1, 1 << 13)
    table.view(torch.int32)[0, 0] = 0x7FA00001  # a signalling NaN
    before, taken = table.clone(), torch.empty_like(table)
    swap_rows_(table, torch.tensor([0]), torch.zeros_like(table), taken, impl="numba")
    assert torch.equal(taken.view(torch.int32), before.view(torch.int32)) and not table.any()


@pytest.mark.parametrize("impl", IMPLS)
def test_what_does_not_fit_is_refused(impl: Impl) -> None:
    """Compiled loops exchange bytes: of wider rows, or at other slots, they would be those of other memory."""
    table, slots, incoming = torch.zeros(300, 128), torch.arange(210), torch.ones(210, 128)
    for wrong in (incoming.double(), torch.ones(210, 256), incoming[:, :64], incoming.int()):
        with pytest.raises(AssertionError):
            swap_rows_(table, slots, wrong, torch.empty_like(wrong), impl=impl)
    for far in (300, -1, 2**40):
        with pytest.raises(ValueError, match=r"slots lie in .*, but the table has 300 rows"):
            swap_rows_(table, torch.where(slots == 7, far, slots), incoming, torch.empty_like(incoming), impl=impl)
    assert not table.any()
