"""The gather-sum against the dense product, in value and gradient."""

import pytest
import torch

from saetools.functional.linear import gather_sum, preactivations, rectified_product, scatter_rows


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_preactivations() -> None:
    x, W, b, c = random(5, 3), random(7, 3), random(7), random(3)
    torch.testing.assert_close(preactivations(x, W, b, c), (x - c) @ W.T + b)


def test_preactivations_pass_gradcheck() -> None:
    parts = [random(*shape).requires_grad_() for shape in ((5, 3), (7, 3), (7,), (3,))]
    assert torch.autograd.gradcheck(preactivations, parts)
    plain = torch.autograd.grad(((parts[0] - parts[3]) @ parts[1].T + parts[2]).square().sum(), parts)
    for found, expected in zip(torch.autograd.grad(preactivations(*parts).square().sum(), parts), plain, strict=True):
        torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda b_dec: preactivations(*(p.detach() for p in parts[:3]), b_dec), parts[3:])


def test_second_derivatives_of_preactivations() -> None:
    """They had left out the way by x - b_dec, without a word."""
    parts = [random(*shape).requires_grad_() for shape in ((5, 3), (7, 3), (7,), (3,))]
    assert torch.autograd.gradgradcheck(preactivations, parts)


def test_gradients_of_preactivations_under_autocast_are_float32() -> None:
    parts = [random(*shape).float().requires_grad_() for shape in ((5, 3), (7, 3), (7,), (3,))]
    with torch.autocast("cpu", torch.bfloat16):
        pre = preactivations(*parts)
    assert pre.dtype == torch.bfloat16
    expected = torch.autograd.grad(((parts[0] - parts[3]) @ parts[1].T + parts[2]).square().sum(), parts)
    for found, plain in zip(torch.autograd.grad(pre.float().square().sum(), parts), expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, plain, rtol=0.05, atol=0.05 * float(plain.abs().max()))


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_rectified_products_are_dense_ones_in_value_and_gradient(share: float) -> None:
    pre, W, dense = random(60, 40) - torch.special.ndtri(torch.tensor(1 - share)), random(40, 6), []
    for product in (rectified_product, torch.matmul):
        parts = [pre.clone().requires_grad_(), W.clone().requires_grad_()]
        found = product(parts[0].relu(), parts[1])
        dense.append([found, *torch.autograd.grad(found.square().sum(), parts)])
    for one, other in zip(*dense, strict=True):
        torch.testing.assert_close(one, other)


def test_gather_sum_of_the_fixed_layout_passes_gradcheck() -> None:
    indices = torch.tensor([[0, 3], [3, 6], [0, 0]], dtype=torch.int32)  # a repeated index adds up
    values, W = random(3, 2).requires_grad_(), random(7, 4).requires_grad_()
    torch.testing.assert_close(gather_sum(values, indices, W), scatter_rows(values, indices, 7) @ W)
    assert torch.autograd.gradcheck(lambda v, w: gather_sum(v, indices, w), (values, W))


def test_gather_sum_of_the_ragged_layout_passes_gradcheck() -> None:
    indices, offsets = torch.tensor([1, 5, 2], dtype=torch.int32), torch.tensor([0, 0, 2, 2, 3])
    values, W = random(3).requires_grad_(), random(7, 4).requires_grad_()
    dense = torch.zeros(4, 7, dtype=torch.float64)
    dense[1, 1], dense[1, 5], dense[3, 2] = values.detach()
    torch.testing.assert_close(gather_sum(values, indices, W, offsets), dense @ W)
    assert torch.autograd.gradcheck(lambda v, w: gather_sum(v, indices, w, offsets), (values, W))


def test_gather_sum_of_nothing() -> None:
    W = random(7, 4)
    for n, k in ((0, 2), (3, 0), (0, 0)):
        assert torch.equal(
            gather_sum(random(n, k), torch.zeros(n, k, dtype=torch.int32), W), torch.zeros(n, 4).double()
        )
    empty = torch.zeros(0, dtype=torch.int32)
    assert torch.equal(gather_sum(random(0), empty, W, torch.zeros(4, dtype=torch.int64)), torch.zeros(3, 4).double())
