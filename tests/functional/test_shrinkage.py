"""Proximal maps against a search over a grid; iterative shrinkage against what is known of its limits."""

from itertools import pairwise

import pytest
import torch

from saetools.functional.shrinkage import Penalty, proximal, shrinkage_code

PENALTIES: list[Penalty] = ["soft", "hard", "cel0"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def penalty_NF(z: torch.Tensor, penalty: Penalty, weight: float, norms: torch.Tensor) -> torch.Tensor:
    """weight * R(z), elementwise, as the module writes R."""
    missing = ((2 * weight) ** 0.5 - norms * z.abs()).clamp_min(0)
    return {"soft": weight * z.abs(), "hard": weight * (z != 0).double(), "cel0": weight - missing.square() / 2}[
        penalty
    ]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_proximal_is_the_minimum(penalty: Penalty) -> None:
    u, norms = torch.linspace(-3, 3, 59, dtype=torch.float64)[:, None], torch.tensor([0.5, 1.0, 1.2]).double()
    grid, step, weight = torch.linspace(-4, 4, 8001, dtype=torch.float64), 0.6, 0.7

    def objective(z: torch.Tensor) -> torch.Tensor:
        return (z - u[..., None]).square() / 2 + step * penalty_NF(z, penalty, weight, norms[:, None])

    found = proximal(u.expand(59, 3), penalty, weight, step, norms)[..., None]
    assert (objective(found)[..., 0] <= objective(grid).min(dim=-1).values + 1e-9).all()
    assert (found == 0).any() and (found != 0).any()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_proximal_under_a_bound_is_that_of_the_positive_part(penalty: Penalty) -> None:
    u, one = torch.linspace(-3, 3, 59, dtype=torch.float64)[:, None], torch.ones(1).double()
    grid, step, weight = torch.linspace(0, 4, 4001, dtype=torch.float64), 0.6, 0.7

    def objective(z: torch.Tensor) -> torch.Tensor:
        return (z - u).square() / 2 + step * penalty_NF(z, penalty, weight, one)

    found = proximal(u.relu(), penalty, weight, step, one)
    assert (found >= 0).all()
    assert (objective(found)[:, 0] <= objective(grid).min(dim=-1).values + 1e-9).all()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_objective_falls_and_codes_become_sparse(penalty: Penalty) -> None:
    x, W = normal(20, 8), torch.nn.functional.normalize(normal(24, 8, seed=1), dim=1)
    norms, values = W.norm(dim=1), []
    for n_steps in (0, 1, 2, 5, 20, 100):
        z = shrinkage_code(x, W, penalty, 0.1, n_steps)
        values.append(float((x - z @ W).square().sum() / 2 + penalty_NF(z, penalty, 0.1, norms).sum()))
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(values)) and values[-1] < 0.5 * values[0]
    assert 0 < (z != 0).double().mean() < 0.7


def test_a_hundred_steps_reach_the_limit_of_coherent_atoms() -> None:
    """Sixteen times as many atoms as dimensions, all alike: plain proximal steps are 4 % above it by then."""
    x, W = normal(20, 24), torch.nn.functional.normalize(normal(384, 24, seed=1) + 1, dim=1)

    def objective(n_steps: int) -> float:
        z = shrinkage_code(x, W, "soft", 0.1, n_steps, nonnegative=True)
        return float((x - z @ W).square().sum() / 2 + 0.1 * z.sum())

    assert objective(100) < 1.005 * objective(3000)


def test_orthonormal_atoms_have_a_solution_in_closed_form() -> None:
    x, W = normal(20, 8), torch.linalg.qr(normal(8, 8, seed=1)).Q
    code = x @ W.T
    torch.testing.assert_close(
        shrinkage_code(x, W, "soft", 0.4), code.sign() * (code.abs() - 0.4).clamp_min(0), rtol=0, atol=1e-9
    )
    kept = torch.where(code.square() > 0.8, code, 0)
    torch.testing.assert_close(shrinkage_code(x, W, "cel0", 0.4, 3000), kept, rtol=0, atol=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("nonnegative", [False, True])
def test_without_atoms_there_is_no_code(penalty: Penalty, nonnegative: bool) -> None:
    """As over an ITDA that has taken none yet; it was NaN."""
    code = shrinkage_code(torch.ones(2, 3), torch.zeros(4, 3), penalty, 0.1, 5, nonnegative)
    assert torch.equal(code, torch.zeros(2, 4))


def test_unknown_penalties_are_named() -> None:
    with pytest.raises(ValueError, match="known: soft, hard, cel0"):
        shrinkage_code(normal(2, 3), normal(4, 3), "l7", 0.1)  # type: ignore[arg-type]
