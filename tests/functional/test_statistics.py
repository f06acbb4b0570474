"""Firing counts of both layouts, with stored zeros and signs."""

import torch

from saetools.dictionaries.code import SparseCode
from saetools.functional.statistics import (
    dead_F,
    density_F,
    firing_counts_F,
    l0_N,
    least_positive,
    tokens_since_fired_F,
)

FIXED = SparseCode(
    torch.tensor([[1.0, 0.0], [-2.0, 3.0], [0.0, 0.0]]), torch.tensor([[1, 0], [1, 3], [2, 0]], dtype=torch.int32), 5
)
RAGGED = SparseCode(
    torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([1, 1, 3, 2], dtype=torch.int32), 5, torch.tensor([0, 1, 3, 4])
)


def test_counts_and_l0() -> None:
    for code in (FIXED, RAGGED):
        assert firing_counts_F(code).tolist() == [0, 2, 0, 1, 0]
        assert l0_N(code).tolist() == [1, 2, 0]


def test_counters_in_tokens() -> None:
    since = tokens_since_fired_F(torch.tensor([5, 5, 0, 7, 9]), firing_counts_F(FIXED), 3)
    assert since.tolist() == [8, 0, 3, 0, 12]
    assert dead_F(since, 8).tolist() == [True, False, False, False, True]


def test_the_least_positive_value() -> None:
    assert least_positive(FIXED.values) == 1 and least_positive(-FIXED.values) == 2
    assert least_positive(torch.zeros(3)) == 0


def test_density() -> None:
    assert density_F(firing_counts_F(FIXED), 3).tolist() == [0, 2 / 3, 0, 1 / 3, 0]
    assert density_F(firing_counts_F(FIXED), 0).isnan().all()
