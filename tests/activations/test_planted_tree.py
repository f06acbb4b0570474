"""The planted tree obeys its law: probabilities, exclusion, gating, and atoms correlated within their groups alone."""

import pytest
import torch

from saetools.activations.planted import PlantedSource
from saetools.activations.planted_tree import N_FEATURES, PlantedTree, TreeConfig


def fires(tree: PlantedTree) -> torch.Tensor:
    return torch.cat([tree.block(i).code_NF for i in range(60)]) > 0


def test_firing_follows_the_tree() -> None:
    tree = PlantedTree(TreeConfig())
    on_NF = fires(tree)
    rate_F = on_NF.float().mean(0)
    parents = torch.tensor([0, 4, 8])
    assert tree.parent_F.tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, *range(12, 20)]
    torch.testing.assert_close(rate_F[parents], torch.full((3,), 0.2), rtol=0.05, atol=0)
    children = [f for f in range(12) if f % 4]
    torch.testing.assert_close(rate_F[children], torch.full((9,), 0.04), rtol=0.1, atol=0)
    torch.testing.assert_close(rate_F[12:], torch.full((8,), 0.05), rtol=0.1, atol=0)
    assert on_NF.float().sum(1).mean() == pytest.approx(1.36, rel=0.02)
    assert on_NF[:, parents].sum(1).max() == 1, "parents exclude each other"
    assert on_NF[:, children].sum(1).max() == 1, "and so do children"
    assert not (on_NF & ~on_NF[:, tree.parent_F]).any(), "a child without its parent"


@pytest.mark.parametrize(("parents", "children"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)])
def test_atoms_are_correlated_within_their_groups(parents: float, children: float) -> None:
    atoms = PlantedTree(TreeConfig(mix_parents=parents, mix_children=children)).atoms_FD
    gram = (atoms @ atoms.T).abs()
    torch.testing.assert_close(gram.diagonal(), torch.ones(N_FEATURES))
    top, family = [0, 4, 8, *range(12, 20)], [1, 2, 3]
    between = gram[top][:, family]
    assert between.max() < 1e-6
    for group, mix in ((top, parents), (family, children)):
        off = gram[group][:, group][~torch.eye(len(group), dtype=torch.bool)]
        n, share = len(group), mix / len(group) ** 0.5  # of the mean in the sum of n orthonormal atoms
        cosine = (2 * (1 - mix) * share + mix**2) / ((1 - mix) ** 2 + 2 * (1 - mix) * share + mix**2)
        torch.testing.assert_close(off, torch.full((n * (n - 1),), cosine), atol=1e-6, rtol=1e-5)


def test_rows_stream_as_a_source() -> None:
    tree = PlantedTree(TreeConfig(d_model=24), seed=3)
    block = tree.block(2)
    assert torch.equal(block.x_ND, block.code_NF @ tree.atoms_FD)
    on = block.code_NF[block.code_NF > 0]
    assert float(on.mean()) == pytest.approx(1.5, rel=0.02) and float(on.std()) == pytest.approx(0.25, rel=0.1)
    source = PlantedSource(tree)
    assert torch.equal(next(source.batches(2))[1].x_ND, block.x_ND)
    assert source.fingerprint() != PlantedSource(PlantedTree(TreeConfig(d_model=24), seed=4)).fingerprint()
