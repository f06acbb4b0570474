"""Rows with known truth: sparse superpositions of planted atoms. What recovery tests and demonstrations train on.

    x_n = sum_f code_nf atom_f + noise,  code_nf = fires_nf * c_nf,  c_nf ~ Uniform(low, high)

Block b of a seed is a pure function of (config, seed, purpose, b), so the rows stream and restart anywhere.
`planted_tree` has another law: a hierarchy whose children exclude each other.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from saetools import rng
from saetools.activations.base import ActivationBatch, NumberedBatches, digest, places
from saetools.activations.calibration import measure
from saetools.config import PlantedConfig
from saetools.records import Calibration, PointSpec
from saetools.text.base import Split


@dataclass(frozen=True)
class PlantedBlock:
    """Rows with the truth behind them."""

    x_ND: Tensor  # float32
    code_NF: Tensor  # float32, zero where a feature does not fire


class Planted:
    """The planted dictionary of one seed.

    A child fires only where its parent does, so its marginal probability is its own times its parent's. Within a
    group, firing thresholds correlated Gaussians (a Gaussian copula), which leaves each marginal as it was.
    """

    def __init__(self, config: PlantedConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed

    @cached_property
    def atoms_FD(self) -> Tensor:
        """Unit vectors in uniformly random directions, float32."""
        shape = (self.config.n_features, self.config.d_model)
        atoms = rng.generator(self.seed, "planted.atoms").standard_normal(shape)
        return torch.from_numpy(atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).float()

    @cached_property
    def probability_F(self) -> Tensor:
        """Firing probability of each feature given that its parent, if any, fires; sums to mean_active (float64).

        p_i = min(c (i + 1)^-exponent, 1/2), c found by bisection.
        """
        weights = (
            torch.arange(1, self.config.n_features + 1, dtype=torch.float64, device="cpu") ** -self.config.zipf_exponent
        )
        low, high = 0.0, 0.5 / float(weights.min())
        for _ in range(100):
            middle = (low + high) / 2
            too_many = float((middle * weights).clamp(max=0.5).sum()) > self.config.mean_active
            low, high = (low, middle) if too_many else (middle, high)
        return (low * weights).clamp(max=0.5)

    @cached_property
    def parent_F(self) -> Tensor:
        """The parent of each feature; its own number where it has none (int64)."""
        feature_F = torch.arange(self.config.n_features, device="cpu")
        return feature_F - feature_F % (1 + self.config.children_per_parent)

    def block(self, number: int, n_rows: int = 1024, purpose: str = "train") -> PlantedBlock:
        """Rows of block `number` (blocks of another size or purpose are other rows)."""
        generator = rng.generator(self.seed, f"planted.{purpose}.{n_rows}", number)
        config, shape = self.config, (n_rows, self.config.n_features)
        gaussian = torch.from_numpy(generator.standard_normal(shape, np.float32))
        if config.correlation > 0:
            n_groups = -(-config.n_features // config.group_size)
            shared = torch.from_numpy(generator.standard_normal((n_rows, n_groups), np.float32))
            shared = shared.repeat_interleave(config.group_size, dim=1)[:, : config.n_features]
            gaussian = config.correlation**0.5 * shared + (1 - config.correlation) ** 0.5 * gaussian
        fires = gaussian < torch.special.ndtri(self.probability_F).float()
        fires &= fires[:, self.parent_F]
        low, high = config.coefficient_low, config.coefficient_high
        coefficients = low + (high - low) * torch.from_numpy(generator.random(shape, np.float32))
        code_NF = torch.where(fires, coefficients, 0.0)
        x_ND = code_NF @ self.atoms_FD
        if config.noise > 0:
            x_ND += config.noise * torch.from_numpy(generator.standard_normal(x_ND.shape, np.float32))
        return PlantedBlock(x_ND, code_NF)


class Truth(Protocol):
    """What a law of planted rows offers: this file's, and `planted_tree`."""

    seed: int

    @property
    def config(self) -> Any:
        """How it was drawn, for fingerprints."""
        ...

    @property
    def atoms_FD(self) -> Tensor:
        """The planted atoms, of unit norm."""
        ...

    @property
    def parent_F(self) -> Tensor:
        """The parent of each atom, without which it does not fire; a root is its own."""
        ...

    def block(self, number: int, n_rows: int = 1024, purpose: str = "train") -> PlantedBlock:
        """Rows of a numbered block with their codes, the same at each call; `purpose` names independent streams."""
        ...


class PlantedSource:
    """Planted rows as a RowSource, calibrated on their first `calibration_rows`. Batch i is block i."""

    def __init__(
        self,
        planted: Truth,
        split: Split = "train",
        n_heldout_batches: int = 16,
        batch_rows: int = 1024,
        calibration_rows: int = 8192,
    ) -> None:
        self.planted, self.split, self.batch_rows = planted, split, batch_rows
        self.n_heldout_batches, self.calibration_rows = n_heldout_batches, calibration_rows
        self.spec = PointSpec(host="rows", point="rows", d_model=planted.config.d_model)

    @cached_property
    def calibration(self) -> Calibration:
        """Of the train split, whichever this is."""
        n_blocks = -(-self.calibration_rows // self.batch_rows)
        blocks = [self.planted.block(i, self.batch_rows, "train").x_ND for i in range(n_blocks)]
        return measure(torch.cat(blocks)[: self.calibration_rows])

    @property
    def n_batches(self) -> int | None:
        """None for the train split, which never repeats."""
        return self.n_heldout_batches if self.split == "heldout" else None

    def batches(self, start: int = 0) -> NumberedBatches:
        number = start
        while self.split == "train" or number < self.n_heldout_batches:
            x_ND = self.planted.block(number, self.batch_rows, self.split).x_ND
            yield number, ActivationBatch(x_ND, places(number * self.batch_rows, (number + 1) * self.batch_rows))
            number += 1

    def document_id(self, number: int) -> str:
        return "planted"

    @property
    def outlier_norm(self) -> None:
        return None

    def fingerprint(self, calibrated: bool = True) -> str:
        return digest(
            {
                "planted": self.planted.config.model_dump(),
                "seed": self.planted.seed,
                "split": self.split,
                "batch_rows": self.batch_rows,
                "n_heldout_batches": self.n_heldout_batches,
            }
        )
