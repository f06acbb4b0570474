"""Angles of atoms that are known, and brute force."""

import numpy as np
import pytest
import torch

from saetools.functional import geometry
from saetools.functional.geometry import angles, co_firing_cosines, row_cosines


def test_orthonormal_atoms_have_no_coherence():
    found = angles(torch.eye(6) * torch.arange(1, 7)[:, None], 5)
    assert found.nearest_F.tolist() == [0] * 6
    assert found.largest_sum_M.tolist() == [0] * 5 and found.mean == 0


def test_equiangular_frame():
    """Three directions at 120 degrees: |cos| = 1/2 for each pair, so mu_1(m) = m / 2."""
    turn = torch.tensor([0, 2 / 3, 4 / 3]) * torch.pi
    found = angles(torch.stack([turn.cos(), turn.sin()], 1) * 3, 64)
    assert found.largest_sum_M.tolist() == pytest.approx([0.5, 1.0], abs=1e-6)
    assert found.mean == pytest.approx(0.5, abs=1e-6)


def test_brute_force_whatever_the_block(monkeypatch):
    atoms, weight = torch.randn(37, 5), torch.randint(0, 9, (37,))
    gram = (torch.nn.functional.normalize(atoms, dim=1) @ torch.nn.functional.normalize(atoms, dim=1).T).abs().double()
    gram.fill_diagonal_(0)
    for block in (64 << 20, 37 * 4 * 3):
        monkeypatch.setattr(geometry, "BLOCK_BYTES", block)
        found = angles(atoms, 4, weight)
        torch.testing.assert_close(found.nearest_F.double(), gram.max(1).values, atol=1e-6, rtol=0)
        babel = gram.sort(1, descending=True).values[:, :4].cumsum(1).max(0).values
        torch.testing.assert_close(found.largest_sum_M, babel, atol=1e-5, rtol=0)
        w = weight.double()
        expected = (w[:, None] * w * gram).sum() / ((w[:, None] * w).sum() - (w * w).sum())
        assert found.mean_weighted == pytest.approx(float(expected), rel=1e-6)


def test_co_firing_pairs_by_a_loop():
    atoms, values = torch.randn(9, 4), torch.tensor([[0.5, 0, -2, 1], [0, 0, 0, 3.0], [0, 0, 0, 0]])
    indices = torch.tensor([[3, 0, 1, 8], [0, 0, 0, 2], [0, 0, 0, 0]], dtype=torch.int32)
    total, pairs, following = co_firing_cosines(values, indices, atoms)
    cosine = lambda i, j: abs(float(torch.cosine_similarity(atoms[i], atoms[j], dim=0)))  # noqa: E731
    assert pairs.tolist() == [3, 0, 0]
    assert total.tolist() == pytest.approx([cosine(1, 8) + cosine(8, 3) + cosine(1, 3), 0, 0], abs=1e-6)
    np.testing.assert_allclose(following[0], [cosine(1, 8), cosine(8, 3), np.nan], atol=1e-6)
    assert following[1:].isnan().all()


def test_row_cosines():
    assert row_cosines(torch.eye(2), torch.tensor([[3.0, 0], [1, 1]])).tolist() == pytest.approx([1, 0.5**0.5])


def test_torchs_default_device_is_not_asked_for():
    atoms = torch.randn(9, 4)
    expected = angles(atoms, 3)
    with torch.device("meta"):
        found = angles(atoms, 3)
    assert torch.equal(found.largest_sum_M, expected.largest_sum_M) and found.mean_weighted == expected.mean_weighted
