"""Rows made of known atoms, and a small training loop, for the tests of single kinds: the fixture `planted`."""

import pytest
import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary, Progress, State, Terms
from saetools.functional.matching import hungarian_match


class Planted:
    """32 atoms in 24 dimensions, 3 at a time with coefficients uniform in [1, 2]."""

    D, N_ATOMS, ACTIVE = 24, 32, 3

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.atoms: Tensor = torch.nn.functional.normalize(torch.randn(self.N_ATOMS, self.D, generator=generator))

    def rows(self, n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + seed)
        chosen = torch.rand(n, self.N_ATOMS, generator=generator).topk(self.ACTIVE, dim=1).indices
        values = 1 + torch.rand(n, self.ACTIVE, generator=generator)
        return torch.zeros(n, self.N_ATOMS).scatter(1, chosen, values) @ self.atoms

    def train(self, dictionary: Dictionary, steps: int = 300, n: int = 256, lr: float = 2e-2) -> tuple[State, Terms]:
        """Adam with linear decay over the last half, on fresh rows each step; absorbs the state at the end."""
        dictionary.total_variance.fill_(4.0)
        optimizer = torch.optim.Adam(dictionary.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, 2 * (1 - s / steps)))
        state = dictionary.initial_state()
        for step in range(steps):
            x, progress = self.rows(n, step), Progress(step, steps, n * steps, 10 * n)
            terms = dictionary.loss_terms(x, x, {}, state, progress)
            weights = dictionary.loss_weights(progress)
            optimizer.zero_grad()
            torch.stack([weights[name] * loss for name, loss in terms.losses.items()]).sum().backward()
            dictionary.project_gradients_()
            optimizer.step()
            schedule.step()
            dictionary.constrain_()
            state = terms.new_state
        dictionary.absorb_(state)
        return state, terms

    def recovered(self, dictionary: Dictionary) -> float:
        """The fraction of atoms whose direction, paired one to one (Hungarian), has a cosine above 0.9."""
        return float(hungarian_match(self.atoms, dictionary.directions()).cosine_P.gt(0.9).float().mean())


@pytest.fixture(scope="session")
def planted() -> Planted:
    return Planted()
