"""Adam against its formula in float64 and against torch's own class; its state as tensors."""

import pytest
import torch

from saetools.training.optim import Adam


def test_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(5, 3, generator=generator)
    exact, m, v = p.double(), torch.zeros(5, 3).double(), torch.zeros(5, 3).double()
    adam = Adam({"p": p})
    for t in range(1, 20):
        g = torch.randn(5, 3, generator=generator) * 10.0 ** torch.randint(-6, 2, (5, 3), generator=generator)
        adam.step_({"p": g}, lr=0.01 / t)
        m = 0.9 * m + 0.1 * g.double()
        v = 0.999 * v + 0.001 * g.double() ** 2
        exact -= 0.01 / t * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 6.25e-10)
    torch.testing.assert_close(p.double(), exact, rtol=1e-5, atol=1e-6)
    assert adam.n_steps == 19


def test_a_resumed_optimizer_goes_on_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(7, generator=generator) for _ in range(6)]
    straight, halves = torch.ones(7), torch.ones(7)
    one, two = Adam({"p": straight}), Adam({"p": halves})
    for g in gradients:
        one.step_({"p": g}, 0.1)
    for g in gradients[:3]:
        two.step_({"p": g}, 0.1)
    saved = {name: tensor.clone() for name, tensor in two.tensors().items()}
    resumed = Adam({"p": halves})
    resumed.load_(saved, two.n_steps)
    for g in gradients[3:]:
        resumed.step_({"p": g}, 0.1)
    assert torch.equal(straight, halves)


def test_a_state_of_other_parameters_is_refused() -> None:
    saved = Adam({"p": torch.zeros(3)}).tensors()
    with pytest.raises(ValueError, match="the parameters need"):
        Adam({"q": torch.zeros(3)}).load_(saved, 1)
    with pytest.raises(ValueError, match="the parameters need"):
        Adam({"p": torch.zeros(4)}).load_(saved, 1)
