"""Top-k with its rule for ties, against a full stable sort; slots of one index merged."""

import pytest
import torch

from saetools.functional.selection import (
    batch_topk_mask,
    column_topk_mask,
    merged_slots,
    topk_code,
    topk_indices,
    topk_mask_reference,
    until_repeat,
)
from saetools.kernels.global_topk.reference import global_topk
from saetools.kernels.per_feature_topm.reference import per_feature_topm
from tests.kernels.largest import Largest


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


@pytest.mark.parametrize("n_kept", [1, 2, 5, 12, 13])
def test_what_is_no_number_is_chosen_as_the_kernels_do(n_kept: int) -> None:
    """One NaN had left a batch without any code, and a finite loss."""
    scores = torch.tensor([[1.0, torch.nan, 3.0], [2.0, 8.0, -torch.inf], [-1.0, torch.nan, 2.0], [0.0, 3.0, 2.0]])
    values, indices, offsets, _ = global_topk(scores, scores, n_kept)
    kept = batch_topk_mask(scores, n_kept)
    assert torch.equal(scores[kept].nan_to_num(9), values.nan_to_num(9)) and int(kept.sum()) <= n_kept
    assert kept.nonzero()[:, 1].tolist() == indices.tolist() and kept.sum(1).cumsum(0).tolist() == offsets[1:].tolist()
    budgets = torch.tensor([min(n_kept, 4), min(n_kept, 4), 1])
    values, indices, offsets = per_feature_topm(scores, scores, budgets)
    kept = column_topk_mask(scores, budgets)
    assert torch.equal(scores[kept].nan_to_num(9).sort().values, values.nan_to_num(9).sort().values)


def test_unused_slots_are_value_and_index_zero() -> None:
    values, indices = topk_code(torch.tensor([[-1.0, -2.0, 3.0, -4.0]]), 3)
    assert values.tolist() == [[3.0, 0.0, 0.0]] and indices.tolist() == [[2, 0, 0]]


def test_unused_slots_pass_no_gradient() -> None:
    pre = torch.tensor([[-1.0, -2.0, 3.0, -4.0]], requires_grad=True)
    topk_code(pre, 3)[0].sum().backward()
    assert pre.grad.tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_merged_slots() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 0.0, 0.0]], requires_grad=True)
    indices = torch.tensor([[3, 5, 3, 3], [0, 1, 0, 0]], dtype=torch.int32)
    merged = merged_slots(values, indices)
    assert merged.tolist() == [[13.0, 2.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]
    merged[0, 0].backward()
    assert values.grad.tolist() == [[1.0, 0.0, 1.0, 1.0], [0.0] * 4]


def test_a_row_ends_with_its_first_repeat() -> None:
    kept = until_repeat(torch.tensor([[3, 5, 3, 1], [0, 1, 2, 3], [1, 1, 2, 2]]))
    assert kept.tolist() == [[True, True, True, False], [True] * 4, [True, True, False, False]]


def test_rows_without_slots() -> None:
    none = torch.zeros(5, 0, dtype=torch.int32)
    assert until_repeat(none).shape == merged_slots(none.float(), none).shape == (5, 0)


def test_merging_holds_no_pair_of_slots() -> None:
    """Any repeats: the same as comparing every two slots of a row, in the memory of the slots."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(9, (50, 40), generator=generator, dtype=torch.int32)
    values = torch.randn(50, 40, generator=generator, dtype=torch.float64, requires_grad=True)
    with Largest() as largest:
        merged = merged_slots(values, indices)
        (gradient,) = torch.autograd.grad(merged.sin().sum(), [values])
    assert largest.n == values.numel()
    same = indices[:, :, None] == indices[:, None, :]
    plain = (same * values[:, None, :]).sum(2) * ~same.tril(-1).any(2)
    torch.testing.assert_close(merged, plain)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.sin().sum(), [values])[0])
