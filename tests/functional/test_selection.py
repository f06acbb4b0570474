"""Top-k with its rule for ties, against a full stable sort."""

import pytest
import torch

from saetools.functional.selection import topk_code, topk_indices, topk_mask_reference


def mask(indices: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like, dtype=torch.bool).scatter(1, indices, True)


@pytest.mark.parametrize("k", [1, 3, 8, 9])
@pytest.mark.parametrize("levels", [2, 3, 1000])
def test_equals_a_stable_sort_where_it_matters(k: int, levels: int) -> None:
    """Few levels make ties in every row; scores <= 0 are all equal after the ReLU."""
    scores = torch.randint(-levels // 2, levels, (50, 9), generator=torch.Generator().manual_seed(k)).double()
    expected = topk_mask_reference(scores, k) & (scores > 0)
    assert torch.equal(mask(topk_indices(scores, k), scores) & (scores > 0), expected)
    values, indices = topk_code(scores, k)
    dense = torch.zeros_like(scores).scatter_add(1, indices.long(), values)
    assert torch.equal(dense, scores * expected)


def test_the_lowest_index_wins_a_tie() -> None:
    assert topk_indices(torch.tensor([[1.0, 2.0, 2.0, 2.0, 2.0]]), 2).tolist() == [[1, 2]]


def test_unused_slots_are_value_and_index_zero() -> None:
    values, indices = topk_code(torch.tensor([[-1.0, -2.0, 3.0, -4.0]]), 3)
    assert values.tolist() == [[3.0, 0.0, 0.0]] and indices.tolist() == [[2, 0, 0]]


def test_unused_slots_pass_no_gradient() -> None:
    pre = torch.tensor([[-1.0, -2.0, 3.0, -4.0]], requires_grad=True)
    topk_code(pre, 3)[0].sum().backward()
    assert pre.grad.tolist() == [[0.0, 0.0, 1.0, 0.0]]
