"""Projection and renormalisation of decoder rows."""

import torch

from saetools.functional.constraints import project_tangent_, unit_rows_
from saetools.functional.initialise import random_directions, tied_start


def test_projection_leaves_what_is_orthogonal() -> None:
    W, gradient = random_directions(8, 5, seed=0).double(), random_directions(8, 5, seed=1).double()
    unit_rows_(W)
    before = gradient.clone()
    project_tangent_(gradient, W)
    assert (gradient * W).sum(1).abs().max() < 1e-15
    removed = before - gradient
    torch.testing.assert_close(removed, (removed * W).sum(1, keepdim=True) * W)


def test_unit_rows() -> None:
    W = random_directions(8, 5, seed=0) * torch.arange(8)[:, None]
    unit_rows_(W)
    assert W[0].tolist() == [0.0] * 5
    torch.testing.assert_close(W[1:].norm(dim=1), torch.ones(7))


def test_start_is_tied_seeded_and_of_unit_rows() -> None:
    W_enc, W_dec = tied_start(8, 5, seed=0)
    assert torch.equal(W_enc, W_dec) and W_enc.data_ptr() != W_dec.data_ptr()
    assert torch.equal(W_dec, tied_start(8, 5, seed=0)[1]) and not torch.equal(W_dec, tied_start(8, 5, seed=1)[1])
    torch.testing.assert_close(W_dec.norm(dim=1), torch.ones(8))
    assert abs(float(random_directions(2000, 50, seed=0).mean())) < 0.003, "directions have no preferred side"
