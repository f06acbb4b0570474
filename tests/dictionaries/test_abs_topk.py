"""AbsTopK: signs."""

from typing import Any

import torch

from saetools.dictionaries.abs_topk import AbsTopK
from saetools.dictionaries.base import make_dictionary
from saetools.functional.statistics import l0_N


def test_opposite_rows_have_opposite_codes() -> None:
    dictionary, x = make_dictionary(AbsTopK.configure(n_features=12, k=3), 6), torch.randn(20, 6)
    code = dictionary.encode(x)
    assert torch.equal(dictionary.encode(-x).to_dense(), -code.to_dense())
    assert (code.values < 0).any() and (l0_N(code) == 3).all()


def test_planted_atoms_are_recovered_up_to_sign(planted: Any) -> None:
    dictionary = make_dictionary(AbsTopK.configure(n_features=64, k=3), planted.D)
    planted.train(dictionary)
    assert planted.recovered(dictionary) >= 0.9
