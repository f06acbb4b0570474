"""Starts: unit rows, a pure function of seed and purpose; the factor that brings a reconstruction closest."""

import pytest
import torch

from saetools.functional.initialise import random_directions, starting_scale


def test_directions_are_a_function_of_seed_and_purpose() -> None:
    drawn = [random_directions(9, 4, seed, purpose) for seed, purpose in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]
    assert drawn[0].equal(drawn[1]) and not drawn[0].equal(drawn[2]) and not drawn[0].equal(drawn[3])
    torch.testing.assert_close(drawn[0].norm(dim=1), torch.ones(9))


def test_no_other_factor_brings_the_reconstruction_closer() -> None:
    x_ND, recon_ND = torch.randn(50, 4), 3 * torch.randn(50, 4) + 1
    factor = starting_scale(x_ND, recon_ND)
    left_ND = x_ND - factor * recon_ND
    assert (left_ND * recon_ND).sum().item() == pytest.approx(0, abs=1e-3)
    assert starting_scale(x_ND, torch.zeros_like(x_ND)) == 1
