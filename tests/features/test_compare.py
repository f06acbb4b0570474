"""Matching the features of two dictionaries by their decoder rows."""

import numpy as np
import pytest
import torch

from saetools.errors import MismatchError
from saetools.features import compare


def test_a_planted_permutation_is_recovered() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(400, 64, generator=generator)
    order = torch.randperm(400, generator=generator)
    theirs = ours[order] * 3 + 0.3 * torch.randn(400, 64, generator=generator)
    found = compare.match_features(ours, theirs)
    assert found.partner_F.tolist() == torch.argsort(order).tolist()
    assert (found.cosine_F > 0.9).all()


def test_the_greater_side_has_features_alone() -> None:
    ours = torch.eye(6)
    found = compare.match_features(ours, ours[[4, 1]])
    assert found.partner_F.tolist() == [-1, 1, -1, -1, 0, -1]
    np.testing.assert_array_equal(found.cosine_F, [0, 1, 0, 0, 1, 0])


@pytest.mark.parametrize("most", [8, 5])
def test_signed_features_are_matched_whichever_way_they_point(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(compare, "MAX_ONE_TO_ONE", most)
    found = compare.match_features(torch.eye(6), -torch.eye(6)[[2, 0]], either_sign=True)
    assert found.partner_F[[0, 2]].tolist() == [1, 0] and found.cosine_F[[0, 2]].tolist() == [1, 1]


def test_of_too_many_each_gets_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "MAX_ONE_TO_ONE", 5)
    found = compare.match_features(torch.eye(6), torch.eye(6)[[2, 0]])
    assert found.partner_F[0] == 1 and found.partner_F[2] == 0 and "share" in found.how


def test_other_widths_are_refused() -> None:
    with pytest.raises(MismatchError, match="64 and 32"):
        compare.match_features(torch.randn(3, 64), torch.randn(3, 32))
