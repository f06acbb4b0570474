"""Places on the map: principal components are the singular vectors; UMAP keeps apart what is apart."""

import numpy as np
import pytest
import torch

from saetools.errors import ConfigError
from saetools.features.places import feature_places, principal_map, umap_map


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean"):
        feature_places(torch.randn(4, 4), "umapp", 0)  # type: ignore[arg-type]
    xy_F2, note = feature_places(torch.randn(30, 5), "pca", 0)
    assert xy_F2.shape == (30, 2) and "principal components" in note


def test_principal_places_are_those_of_the_singular_vectors() -> None:
    rows_FD = torch.randn(40, 6) * torch.arange(1, 7) + 5
    unit_FD = torch.nn.functional.normalize(rows_FD.double(), dim=1)
    left, sizes, _ = torch.linalg.svd(unit_FD - unit_FD.mean(0), full_matrices=False)
    xy_F2, explained = principal_map(rows_FD)
    torch.testing.assert_close(xy_F2.abs(), (left[:, :2] * sizes[:2]).abs())
    assert explained == pytest.approx(float(sizes[:2].square().sum() / sizes.square().sum()))


def test_rows_of_width_one_lie_on_a_line() -> None:
    xy_F2, explained = principal_map(torch.tensor([[2.0], [-3.0], [1.0], [0.0]]))
    assert xy_F2.shape == (4, 2) and explained == pytest.approx(1.0)
    torch.testing.assert_close(xy_F2.abs(), torch.tensor([[0.75, 0.0], [1.25, 0], [0.75, 0], [0.25, 0]]).double())


@pytest.mark.slow
def test_umap_keeps_clusters_apart_and_repeats() -> None:
    pytest.importorskip("umap", reason="the extra map is not installed")
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(12)[[0, 5]].repeat_interleave(25, 0) * 4
    rows = centres + 0.3 * torch.randn(50, 12, generator=generator)
    rows = torch.cat([rows, torch.zeros(1, 12)])
    xy = umap_map(rows, seed=3).numpy()
    assert (xy == umap_map(rows, seed=3).numpy()).all() and (xy[-1] == 0).all()
    one, two = xy[:25], xy[25:50]
    apart = np.linalg.norm(one.mean(0) - two.mean(0))
    assert apart > 2 * max(np.linalg.norm(part - part.mean(0), axis=1).max() for part in (one, two))
    assert (umap_map(rows[:3], seed=0) == 0).all(), "too few to lay out"
