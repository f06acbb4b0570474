"""Straight-through estimates: exact forward, the paper's pseudo-derivatives, and what they estimate."""

import pytest
import torch

from saetools.functional.straight_through import jumprelu, step

PRE = torch.tensor([[-1.0, 0.45, 0.55, 2.0]], dtype=torch.float64)


def test_forward() -> None:
    threshold = torch.full((4,), 0.5, dtype=torch.float64)
    assert jumprelu(PRE, threshold, 0.2).tolist() == [[0.0, 0.0, 0.55, 2.0]]
    assert step(PRE, threshold, 0.2).tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_backward_within_and_outside_the_window() -> None:
    pre, threshold = PRE.clone().requires_grad_(), torch.full((4,), 0.5, dtype=torch.float64).requires_grad_()
    (jumprelu(pre, threshold, 0.2) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert pre.grad.tolist() == [[0.0, 0.0, 3.0, 4.0]]
    assert threshold.grad.tolist() == pytest.approx([0.0, -2 * 0.5 / 0.2, -3 * 0.5 / 0.2, 0.0])
    pre.grad = threshold.grad = None
    (step(pre, threshold, 0.2) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert pre.grad.abs().max() == 0
    assert threshold.grad.tolist() == pytest.approx([0.0, -2 / 0.2, -3 / 0.2, 0.0])


def test_the_estimate_is_the_derivative_of_the_expectation() -> None:
    """E step(normal - t) = 1 - Phi(t): its derivative is the density, -phi(t)."""
    pre = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threshold = torch.tensor([0.7], dtype=torch.float64).requires_grad_()
    step(pre, threshold, 0.2).mean().backward()
    density = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(0.7)).exp().item()
    assert threshold.grad.item() == pytest.approx(-density, rel=0.03)
