"""Sparse codes: the two layouts say the same."""

import pytest
import torch

from saetools.dictionaries.code import SparseCode


def dense() -> torch.Tensor:
    code = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    return code * (code > 0.5)


def test_layouts_agree() -> None:
    ragged = SparseCode.from_dense(dense())
    fixed = ragged.to_fixed()
    assert torch.equal(ragged.to_dense(), dense()) and torch.equal(fixed.to_dense(), dense())
    for ours, theirs in zip(ragged.flat(), fixed.flat()):
        assert torch.equal(ours, theirs)


def test_select_and_concatenate_undo_each_other() -> None:
    ragged = SparseCode.from_dense(dense())
    for code in (ragged, ragged.to_fixed()):
        parts = [code.select(slice(0, 2)), code.select(slice(2, 2)), code.select(slice(2, 7))]
        again = SparseCode.concatenate(parts)
        assert torch.equal(again.to_dense(), dense()) and len(again) == 7
        assert len(code.select(slice(5, 2))) == 0
        assert torch.equal(code.scaled(2.0).to_dense(), 2 * dense())


def test_bad_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="int32"):
        SparseCode(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="differ"):
        SparseCode(torch.zeros(2, 1), torch.zeros(2, 2, dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="fixed code"):
        SparseCode(torch.zeros(2), torch.zeros(2, dtype=torch.int32), 3)
