"""Which feature of another dictionary is which of ours: pairs by the cosine of decoder rows."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from saetools.errors import MismatchError
from saetools.functional.matching import best_matches, hungarian_match

MAX_ONE_TO_ONE = 8_192
"""Rows of either side above which the assignment would take minutes."""


@dataclass(frozen=True)
class Partners:
    """For each of our features its partner there (-1: none) and their cosine."""

    partner_F: np.ndarray  # int64
    cosine_F: np.ndarray  # float32; 0 where there is no partner
    how: str


def match_features(ours_FD: Tensor, theirs_GD: Tensor, either_sign: bool = False) -> Partners:
    """One to one with the greatest sum of cosines (Hungarian method) up to 8,192 features; above, the nearest of each.

    `either_sign`: of |cosines|, for codes that are signed. Raises MismatchError where the widths differ.
    """
    if ours_FD.shape[1] != theirs_GD.shape[1]:
        raise MismatchError(
            f"the decoder rows have {ours_FD.shape[1]} and {theirs_GD.shape[1]} entries: the dictionaries are for "
            "different vectors, so their features have no cosine. Compare dictionaries of one point of one model."
        )
    if max(len(ours_FD), len(theirs_GD)) > MAX_ONE_TO_ONE:
        nearest_F, index_F = best_matches(ours_FD, theirs_GD, either_sign)
        how = "each beside the nearest there by the cosine of their decoder rows; several may share one"
        return Partners(index_F.numpy(), nearest_F.numpy(), how)
    match = hungarian_match(ours_FD, theirs_GD, either_sign)
    partner_F, cosine_F = np.full(len(ours_FD), -1), np.zeros(len(ours_FD), np.float32)
    partner_F[match.a_P.numpy()], cosine_F[match.a_P.numpy()] = match.b_P.numpy(), match.cosine_P.numpy()
    return Partners(partner_F, cosine_F, "matched one to one by the cosine of their decoder rows")
