"""Pairings that are known."""

import numpy as np
import pytest
import torch

from saetools.functional.matching import best_matches, hungarian_match, random_atoms_like


def test_a_permutation_is_undone_whatever_the_norms():
    atoms, order = torch.randn(20, 30), torch.randperm(20)
    match = hungarian_match(atoms, atoms[order] * 3)
    assert match.a_P.tolist() == list(range(20))
    assert order[match.b_P].tolist() == list(range(20))
    assert match.cosine_P.tolist() == pytest.approx([1.0] * 20, abs=1e-5)


def test_one_to_one_beats_greedy():
    """a0 prefers b0 by a hair, but a1 has nothing else."""
    a = torch.tensor([[1.0, 0.9], [1.0, 0.0]])
    match = hungarian_match(a, torch.tensor([[1.0, 0.3], [0.3, 1.0]]))
    assert match.b_P.tolist() == [1, 0]


def test_unequal_numbers_and_signs():
    match = hungarian_match(torch.eye(3), -torch.eye(3)[:2])
    assert len(match.a_P) == 2 and match.cosine_P.max() <= 0
    either = hungarian_match(torch.eye(3), -torch.eye(3)[:2], either_sign=True)
    assert either.b_P.tolist() == [0, 1] and either.cosine_P.tolist() == [1, 1]


def test_best_matches_by_brute_force():
    a, b = torch.randn(17, 4), torch.randn(9, 4)
    cosine, index = best_matches(a, b)
    expected = torch.cosine_similarity(a[:, None], b[None], dim=2).max(1)
    torch.testing.assert_close(cosine, expected.values)
    assert index.equal(expected.indices)
    cosine, index = best_matches(a, -b, either_sign=True)
    expected = torch.cosine_similarity(a[:, None], b[None], dim=2).abs().max(1)
    torch.testing.assert_close(cosine, expected.values)
    assert index.equal(expected.indices)


def test_random_atoms_share_the_second_moment():
    atoms = torch.randn(4000, 6) * torch.tensor([5.0, 1, 1, 1, 1, 0.1])
    drawn = random_atoms_like(atoms, 0)
    assert drawn.norm(dim=1).numpy() == pytest.approx(np.ones(4000), abs=1e-5)
    share_D = drawn.square().mean(0)
    assert share_D[0] > 2 / 6 > 4 * share_D[5]  # isotropic rows would have 1/6 everywhere
    assert random_atoms_like(atoms, 0).equal(drawn) and not random_atoms_like(atoms, 1).equal(drawn)


def test_nothing_to_match_with():
    with torch.device("meta"):
        cosine, index = best_matches(torch.ones(3, 2, device="cpu"), torch.ones(0, 2, device="cpu"))
    assert cosine.tolist() == [0, 0, 0] and index.tolist() == [-1, -1, -1]
