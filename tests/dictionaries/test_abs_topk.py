"""AbsTopK: signs."""

from typing import Any

import torch

from saetools.dictionaries.abs_topk import AbsTopK
from saetools.dictionaries.base import Progress, make_dictionary
from saetools.functional.losses import auxk
from saetools.functional.statistics import l0_N


def test_opposite_rows_have_opposite_codes() -> None:
    dictionary, x = make_dictionary(AbsTopK.configure(n_features=12, k=3), 6), torch.randn(20, 6)
    code = dictionary.encode(x)
    assert torch.equal(dictionary.encode(-x).to_dense(), -code.to_dense())
    assert (code.values < 0).any() and (l0_N(code) == 3).all()


def test_dead_features_learn_with_either_sign() -> None:
    dictionary, x = make_dictionary(AbsTopK.configure(n_features=12, k=3, k_aux=4), 6), torch.randn(20, 6)
    state = dictionary.initial_state()
    state.tokens_since_fired_F[6:] = 50
    terms = dictionary.loss_terms(x, x, {}, state, Progress(0, 1, 1, 50))
    rows = (t[6:] for t in (dictionary.W_enc_FD, dictionary.b_enc_F))
    expected = auxk(x, terms.residual_ND, *rows, dictionary.b_dec_D, dictionary.W_dec_FD[6:], 4, signed=True)
    assert terms.losses["auxk"].item() == expected.item() > 0


def test_planted_atoms_are_recovered_up_to_sign(planted: Any) -> None:
    dictionary = make_dictionary(AbsTopK.configure(n_features=64, k=3), planted.D)
    planted.train(dictionary)
    assert planted.recovered(dictionary) >= 0.75
