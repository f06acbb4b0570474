"""decode and its transpose against float64 and autograd."""

import pytest
import torch

from saetools.kernels.by_feature import by_feature
from saetools.kernels.decode import cases, decode


@pytest.mark.parametrize("impl", ["auto", "reference", "torch", "numba"])
def test_cases(impl: str) -> None:
    cases.verify(impl)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cases_in_other_dtypes(dtype: torch.dtype) -> None:
    cases.verify("reference", dtype)
    if dtype == torch.float64:
        cases.verify("torch", dtype)


def test_gradcheck_of_the_reference() -> None:
    values = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    W = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    indices = torch.rand(4, 9).argsort(1)[:, :3].int()
    for impl in ("reference", "torch"):
        assert torch.autograd.gradcheck(lambda v, w, impl=impl: decode(v, indices, w, impl=impl), (values, W))


def test_an_index_outside_the_matrix_is_refused() -> None:
    values, indices = torch.ones(2, 2), torch.tensor([[0, 1], [2, 9]], dtype=torch.int32)
    for impl in ("reference", "torch", "numba"):
        with pytest.raises(IndexError, match=r"0\.\.9"):
            decode(values, indices, torch.randn(9, 4), impl=impl)
    values[1, 1] = 0
    decode(values, indices, torch.randn(9, 4), impl="numba")  # an unused slot may hold any index


def test_a_range_of_features() -> None:
    W = torch.randn(20, 4)
    values, indices = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[12, 19, 0]], dtype=torch.int32)
    for impl in ("reference", "torch", "numba"):
        out = decode(values, indices, W[10:], first_feature=10, impl=impl)
        torch.testing.assert_close(out[0], W[12] + 2 * W[19])


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_by_feature_is_stable_and_skips_unused_slots(impl: str) -> None:
    values = torch.tensor([1.0, 0.0, 2.0, 3.0, 0.0, 4.0])
    indices = torch.tensor([4, 0, 2, 4, 2, 2], dtype=torch.int32)
    offsets, slots = by_feature(values, indices, 6, impl=impl)
    assert offsets.tolist() == [0, 0, 0, 2, 2, 4, 4]
    assert slots.tolist() == [2, 5, 0, 3]
    assert by_feature(values[:0], indices[:0], 3, impl=impl)[0].tolist() == [0, 0, 0, 0]
    with pytest.raises(IndexError, match=r"0\.\.4"):
        by_feature(values, indices, 4, impl=impl)
    with pytest.raises(ValueError, match=r"must both be"):
        by_feature(values, indices[:3], 6, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference", "torch", "numba"])
def test_slots_that_do_not_fit_are_refused(impl: str) -> None:
    """Compiled loops would read beyond them."""
    values, indices, W = torch.ones(40), torch.zeros(40, dtype=torch.int32), torch.randn(900, 5)
    for offsets in ([0, 10**6, 2 * 10**6], [0, 50, 40], [1, 40], [-5, 40], [0, 30], []):
        with pytest.raises(ValueError, match="rise from 0 to 40"):
            decode(values, indices, W, torch.tensor(offsets, dtype=torch.long), impl=impl)
    for shape in ((4, 10), (39,)):
        with pytest.raises(ValueError, match="must both be"):
            decode(values, torch.zeros(shape, dtype=torch.int32), W, torch.tensor([0, 40]), impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference", "torch", "numba"])
def test_indices_beyond_int32_do_not_come_around(impl: str) -> None:
    with pytest.raises(IndexError):
        decode(torch.ones(1, 1), torch.full((1, 1), 2**32 + 3), torch.randn(900, 5), impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference", "torch", "numba"])
def test_no_slot_lies_within_a_matrix_without_rows(impl: str) -> None:
    with pytest.raises(IndexError, match=r"0\.\.0 of the 0 rows"):
        decode(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int32), torch.randn(0, 5), impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference", "torch", "numba"])
def test_the_gradient_of_a_value_that_is_zero(impl: str) -> None:
    """What optimises codes begins there: it had been the gradient of feature 0."""
    W = torch.randn(900, 5)
    values = torch.tensor([[0.0, 2.0], [0.0, 0.0]], requires_grad=True)
    decode(values, torch.tensor([[7, 3], [9, 8]], dtype=torch.int32), W, impl=impl).sum().backward()
    torch.testing.assert_close(values.grad, W.sum(1)[torch.tensor([[7, 3], [9, 8]])])


@pytest.mark.parametrize("impl", ["auto", "reference", "torch"])
def test_values_of_another_dtype(impl: str) -> None:
    """They are rounded to that of W, whichever road is taken."""
    values, indices = torch.randn(40, 2), torch.randint(900, (40, 2), dtype=torch.int32)
    for values_as, W_as in ((torch.float32, torch.bfloat16), (torch.float64, torch.float32)):
        W = torch.randn(900, 5).to(W_as)
        leaf = values.to(values_as).requires_grad_()
        out = decode(leaf, indices, W, impl=impl)
        assert out.dtype == W_as
        torch.testing.assert_close(out, decode(values.to(W_as), indices, W, impl="reference"))
        assert torch.autograd.grad(out.sum(), leaf)[0].dtype == values_as
