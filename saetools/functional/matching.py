"""Pairing the rows of two matrices by cosine; by |cosine| where a row and its negative are the same (signed codes)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.functional.geometry import BLOCK_BYTES, unit


@dataclass(frozen=True)
class Match:
    """min(A, B) pairs: row a_P[p] of the one matrix with row b_P[p] of the other; a_P ascends."""

    a_P: Tensor  # int64
    b_P: Tensor  # int64
    cosine_P: Tensor  # float32; its magnitude where signs do not matter


@torch.no_grad()
def hungarian_match(a_AD: Tensor, b_BD: Tensor, either_sign: bool = False) -> Match:
    """The one-to-one pairing of rows with the greatest sum of cosines (Hungarian method; Kuhn 1955).

    Opposite directions are as unlike as can be, or equal with `either_sign`. O(A B D) and, for the assignment, about
    O(min^2 max): seconds at 4,096 x 4,096, minutes at four times that. An A x B matrix is held.
    """
    from scipy.optimize import linear_sum_assignment

    cosine_AB = (unit(a_AD) @ unit(b_BD).T).cpu()
    cosine_AB = cosine_AB.abs() if either_sign else cosine_AB
    a_P, b_P = (torch.from_numpy(index) for index in linear_sum_assignment(cosine_AB.numpy(), maximize=True))
    return Match(a_P, b_P, cosine_AB[a_P, b_P])


@torch.no_grad()
def best_matches(a_AD: Tensor, b_BD: Tensor, either_sign: bool = False) -> tuple[Tensor, Tensor]:
    """(cosine_A, index_A): for each row of a the row of b of greatest cosine; several may share one. Blockwise.

    (0, -1) where b has no row.
    """
    if not len(b_BD):
        none_A = torch.full((len(a_AD),), -1, device="cpu")
        return none_A.new_zeros(len(a_AD), dtype=torch.float32), none_A
    unit_BD, parts = unit(b_BD), []
    for block in unit(a_AD).split(max(1, BLOCK_BYTES // (4 * len(unit_BD)))):
        cosine_AB = block @ unit_BD.T
        parts.append((cosine_AB.abs() if either_sign else cosine_AB).max(1))
    return torch.cat([part.values for part in parts]).cpu(), torch.cat([part.indices for part in parts]).cpu()


@torch.no_grad()
def random_atoms_like(atoms_FD: Tensor, seed: int) -> Tensor:
    """As many rows drawn from the Gaussian with the atoms' second moment, then normalised: the chance level of a match.

    Directions that every dictionary of the same activations prefers are preferred by these too, so that what a match
    has above them is about single atoms.
    """
    generator = torch.Generator().manual_seed(seed)
    unit_FD = unit(atoms_FD).cpu()
    moment_DD = unit_FD.double().T @ unit_FD.double() / max(len(unit_FD), 1)
    value_D, vector_DD = torch.linalg.eigh(moment_DD)
    root_DD = (vector_DD * value_D.clamp_min(0).sqrt()) @ vector_DD.T
    return unit(torch.randn(unit_FD.shape, generator=generator, dtype=torch.float32, device="cpu") @ root_DD.float())
