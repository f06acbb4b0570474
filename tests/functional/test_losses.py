"""Losses against their equations written out with loops."""

import pytest
import torch

from saetools.functional.losses import auxk, mean_of_rows, power_penalty, reconstruction


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_reconstruction() -> None:
    residual, V = random(5, 3), torch.tensor(2.5, dtype=torch.float64)
    expected = sum(float(row @ row) for row in residual) / 5 / 2.5
    assert reconstruction(residual, V).item() == pytest.approx(expected)
    assert reconstruction(residual.float(), V).dtype == torch.float32
    assert reconstruction(residual[:0], V).item() == 0


def test_means_are_rounded_once() -> None:
    for seed in range(10):
        terms = torch.rand(1000, generator=torch.Generator().manual_seed(seed))
        assert mean_of_rows(terms) == terms.double().mean().float()


def written_out(x, residual, W_enc, b_enc, b_dec, W_dec, k_aux):
    error, total, spread = residual.detach(), 0.0, 0.0
    for row in range(len(x)):
        pre = (x[row] - b_dec) @ W_enc.T + b_enc
        chosen = pre.argsort(descending=True)[:k_aux]
        recon = sum((pre[i].clamp_min(0) * W_dec[i] for i in chosen), torch.zeros(x.shape[1], dtype=x.dtype))
        total = total + (error[row] - recon).square().sum()
        spread = spread + (error[row] - error.mean(0)).square().sum()
    return min(len(W_enc) / k_aux, 1.0) * total / spread


@pytest.mark.parametrize(("n_dead", "k_aux"), [(6, 2), (2, 6), (4, 4), (1, 1)])
def test_auxk_in_value_and_gradient(n_dead: int, k_aux: int) -> None:
    inputs = [
        random(9, 5),
        random(9, 5) * 2,
        random(n_dead, 5).requires_grad_(),
        random(n_dead).requires_grad_(),
        random(5).requires_grad_(),
        (random(n_dead, 5) + 1).requires_grad_(),
    ]
    ours, expected = auxk(*inputs, k_aux), written_out(*inputs, k_aux)
    torch.testing.assert_close(ours, expected)
    parameters = inputs[2:]
    for one, other in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(one, other)


def test_auxk_leaves_the_residual_alone() -> None:
    residual, W_enc = random(9, 5).requires_grad_(), random(3, 5).requires_grad_()
    auxk(random(9, 5) + 1, residual, W_enc, random(3), random(5), random(3, 5), 2).backward()
    assert residual.grad is None and W_enc.grad.abs().max() > 0


def test_auxk_without_dead_features_or_variance_is_zero() -> None:
    x, residual = random(9, 5), random(9, 5)
    assert auxk(x, residual, random(0, 5), random(0), random(5), random(0, 5), 2).item() == 0
    W_enc = random(3, 5).requires_grad_()
    one_row = auxk(x[:1], residual[:1], W_enc, random(3), random(5), random(3, 5), 2)
    one_row.backward()
    assert one_row.item() == 0 and W_enc.grad.abs().max() == 0
    for n in (3, 5, 7):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            equal = (residual[:1].expand(n, -1), random(3, 5), random(3), random(5), random(3, 5))
            loss = auxk(x[:n].to(dtype), *(t.to(dtype) for t in equal), 2)
            assert loss.item() == 0, "the mean of equal rows is not quite theirs: the loss was 1e15"


def test_power_penalty() -> None:
    values = torch.tensor([4.0, 0.0, -9.0], dtype=torch.float64).requires_grad_()
    V = torch.tensor(4.0, dtype=torch.float64)
    assert power_penalty(values, 2, V).item() == pytest.approx((2 + 4.5) / 2)
    half = power_penalty(values, 2, V, power=0.5)
    assert half.item() == pytest.approx((2**0.5 + 4.5**0.5) / 2)
    half.backward()
    assert values.grad.isfinite().all() and values.grad[1] == 0 and values.grad[2] < 0
    assert power_penalty(values[:0], 0, V).item() == 0
