"""A planted hierarchy with exclusive children: the benchmark on which flat encoders recover one level of two.

    3 parents fire with p = 0.2 each, at most one of them; where one fires, one of its 3 children does with p = 0.2
    each; 8 leaves fire by themselves with p = 0.05 each. 20 features in D = 20, expected L0 1.36.
    coefficient ~ 1.5 + 0.25 N(0, 1)
    atoms: orthonormal, then unit((1 - e) atom + e mean of its group) for the groups of parents and leaves (e =
    `mix_parents`) and of each parent's children (e = `mix_children`), which correlates the atoms within a group

Source: the tree of noanabeshima/matryoshka-saes (there parents have p = 0.15) in the version of Costa et al. 2025,
arXiv 2506.03093 (tree.json of mpsae/MP-SAE: p = 0.2). Differs from it in: how atoms are mixed is ours, since only its
purpose, correlations of 0 to 0.8 within a group, is published; coefficients are held above 0.
"""

from functools import cached_property

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetools import rng
from saetools.activations.planted import PlantedBlock
from saetools.records import FrozenModel

N_PARENTS, N_CHILDREN, N_LEAVES = 3, 3, 8
P_PARENT, P_CHILD, P_LEAF = 0.2, 0.2, 0.05
N_FEATURES = N_PARENTS * (1 + N_CHILDREN) + N_LEAVES


class TreeConfig(FrozenModel):
    """How the atoms of the tree are correlated."""

    d_model: int = Field(N_FEATURES, ge=N_FEATURES, description="D, width of a row")
    mix_parents: float = Field(0.0, ge=0, lt=1, description="pull of parents and leaves to their mean: 0 is orthogonal")
    mix_children: float = Field(0.0, ge=0, lt=1, description="pull of a parent's children to their mean")


class PlantedTree:
    """The tree of one seed; offers what `planted.Planted` does."""

    def __init__(self, config: TreeConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed

    @cached_property
    def parent_F(self) -> Tensor:
        """The parent of each feature; its own number where it has none. Parents 0, 4, 8 stand before their children."""
        feature_F = torch.arange(N_FEATURES, device="cpu")
        in_tree = feature_F < N_PARENTS * (1 + N_CHILDREN)
        return torch.where(in_tree, feature_F - feature_F % (1 + N_CHILDREN), feature_F)

    @cached_property
    def atoms_FD(self) -> Tensor:
        """Unit vectors, float32."""
        gaussian = rng.generator(self.seed, "tree.atoms").standard_normal((self.config.d_model, N_FEATURES))
        atoms_FD = torch.from_numpy(np.linalg.qr(gaussian).Q.T.copy())
        is_top = self.parent_F == torch.arange(N_FEATURES, device="cpu")
        families = torch.arange(N_PARENTS * (1 + N_CHILDREN), device="cpu").view(N_PARENTS, -1)[:, 1:]
        groups = [(is_top.nonzero()[:, 0], self.config.mix_parents)]
        groups += [(children, self.config.mix_children) for children in families]
        for members, mix in groups:
            mean_D = torch.nn.functional.normalize(atoms_FD[members].sum(0), dim=0)
            atoms_FD[members] = (1 - mix) * atoms_FD[members] + mix * mean_D
        return torch.nn.functional.normalize(atoms_FD, dim=1).float()

    def block(self, number: int, n_rows: int = 1024, purpose: str = "train") -> PlantedBlock:
        """Rows of block `number` (blocks of another size or purpose are other rows)."""
        generator = rng.generator(self.seed, f"tree.{purpose}.{n_rows}", number)
        fires_NF = np.zeros((n_rows, N_FEATURES), bool)
        rows, draw_N = np.arange(n_rows), generator.random(n_rows)
        parent_N = (draw_N / P_PARENT).astype(int)  # N_PARENTS or more: none
        child_N = (generator.random(n_rows) / P_CHILD).astype(int)
        has_parent, has_child = parent_N < N_PARENTS, (parent_N < N_PARENTS) & (child_N < N_CHILDREN)
        fires_NF[rows[has_parent], (1 + N_CHILDREN) * parent_N[has_parent]] = True
        fires_NF[rows[has_child], (1 + N_CHILDREN) * parent_N[has_child] + 1 + child_N[has_child]] = True
        fires_NF[:, -N_LEAVES:] = generator.random((n_rows, N_LEAVES)) < P_LEAF
        coefficients = np.maximum(1.5 + 0.25 * generator.standard_normal(fires_NF.shape), 0.01)
        code_NF = torch.from_numpy(np.where(fires_NF, coefficients, 0.0)).float()
        return PlantedBlock(code_NF @ self.atoms_FD, code_NF)
