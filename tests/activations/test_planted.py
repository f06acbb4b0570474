"""Planted rows obey their law and stream as a pure function of (seed, block)."""

import pytest
import torch
from pydantic import ValidationError

from saetools.activations.planted import Planted, PlantedConfig, PlantedSource

BASE = {"d_model": 16, "n_features": 40, "mean_active": 4.0}


def many(planted, n=40):
    return torch.cat([planted.block(i).code_NF for i in range(n)])


def test_rows_are_the_code_times_unit_atoms():
    planted = Planted(PlantedConfig(**BASE))
    block = planted.block(0)
    assert torch.allclose(planted.atoms_FD.norm(dim=1), torch.ones(40))
    assert torch.allclose(block.x_ND, block.code_NF @ planted.atoms_FD)
    on = block.code_NF[block.code_NF != 0]
    assert 0.5 <= float(on.min()) < 0.55 < 1.45 < float(on.max()) <= 1.5


def test_blocks_are_a_function_of_seed_and_number():
    one, again, other = (
        Planted(PlantedConfig(**BASE)),
        Planted(PlantedConfig(**BASE)),
        Planted(PlantedConfig(**BASE), 1),
    )
    one.block(0)
    assert one.block(5).x_ND.equal(again.block(5).x_ND)
    assert not one.block(5).x_ND.equal(one.block(6).x_ND)
    assert not one.block(5).x_ND.equal(other.block(5).x_ND)
    assert not one.block(5).x_ND.equal(one.block(5, purpose="heldout").x_ND)


@pytest.mark.parametrize("extra", [{}, {"group_size": 5, "correlation": 0.7}])
def test_features_fire_as_often_as_they_should(extra):
    planted = Planted(PlantedConfig(**BASE, zipf_exponent=1.0, **extra))
    assert float(planted.probability_F.sum()) == pytest.approx(4.0, rel=1e-6)
    assert float(planted.probability_F[0]) == pytest.approx(0.5)
    assert float(planted.probability_F[10] / planted.probability_F[21]) == pytest.approx(2.0)
    measured = (many(planted) > 0).float().mean(0).double()
    assert float((measured - planted.probability_F).abs().max()) < 0.015


def test_groups_fire_together():
    planted = Planted(PlantedConfig(**BASE, zipf_exponent=0, group_size=2, correlation=0.9))
    correlation = torch.corrcoef((many(planted) > 0).float().T)
    assert float(correlation[0, 1]) > 0.5 > 0.1 > abs(float(correlation[1, 2]))


def test_children_fire_only_with_their_parent():
    planted = Planted(PlantedConfig(**BASE, zipf_exponent=0, children_per_parent=3))
    fires = many(planted) > 0
    assert planted.parent_F[:6].tolist() == [0, 0, 0, 0, 4, 4]
    assert not bool((fires & ~fires[:, planted.parent_F]).any())
    assert float(fires[:, 1].float().mean()) == pytest.approx(0.1**2, rel=0.2)


def test_noise_has_its_size():
    block = Planted(PlantedConfig(**BASE, noise=0.3)).block(0)
    noise = block.x_ND - block.code_NF @ Planted(PlantedConfig(**BASE)).atoms_FD
    assert float(noise.std()) == pytest.approx(0.3, rel=0.03)


def test_the_source_restarts_anywhere_and_holds_out_other_rows(same):
    planted = Planted(PlantedConfig(**BASE))
    train, heldout = PlantedSource(planted, batch_rows=64), PlantedSource(planted, "heldout", 3, 64)
    stream = train.batches()
    straight = [next(stream)[1] for _ in range(8)]
    assert same(next(train.batches(5))[1], straight[5])
    assert [n for n, _ in heldout.batches()] == [0, 1, 2]
    assert not next(heldout.batches())[1].x_ND.equal(straight[0].x_ND)
    assert heldout.calibration == train.calibration
    assert heldout.fingerprint() != train.fingerprint()


@pytest.mark.parametrize("wrong", [{"mean_active": 40.0}, {"coefficient_low": 2.0}, {"correlation": 1.0}, {"typo": 1}])
def test_laws_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValidationError):
        PlantedConfig(**(BASE | wrong))
