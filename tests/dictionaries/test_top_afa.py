"""Top-AFA: norms match; the diagnostics of quasi-orthogonality."""

from typing import Any

import pytest
import torch

from saetools.dictionaries.base import Progress, make_dictionary
from saetools.dictionaries.top_afa import TopAFA
from saetools.functional.afa import epsilon_lower_bound_N, norm_matching_mask
from saetools.functional.statistics import l0_N


def test_counts() -> None:
    active = torch.tensor([[0.0, 3.0, 4.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert norm_matching_mask(active, torch.tensor([5.0, 100.0, 0.0])).sum(1).tolist() == [2, 3, 0]


def test_rows_of_orthonormal_atoms_get_their_true_number_of_features() -> None:
    dictionary = make_dictionary(TopAFA.configure(n_features=8), 8)
    with torch.no_grad():
        dictionary.W_enc_FD.copy_(torch.eye(8))
        dictionary.W_dec_FD.copy_(torch.eye(8))
    x = torch.zeros(3, 8)
    x[0, :1], x[1, :3], x[2, :5] = 2.0, 1.0, 0.5
    assert l0_N(dictionary.encode(x)).tolist() == [1, 3, 5]
    torch.testing.assert_close(dictionary(x), x)


def test_the_norm_loss_brings_code_and_row_to_one_length(planted: Any) -> None:
    x, gaps = planted.rows(500, seed=-1), []
    for weight in (0.0, 1.0):
        dictionary = make_dictionary(TopAFA.configure(n_features=48, afa_weight=weight), planted.D)
        planted.train(dictionary, steps=100)
        lengths = dictionary.encode(x).to_dense().norm(dim=1)
        gaps.append((lengths - (x - dictionary.b_dec_D).norm(dim=1)).abs().mean().item())
    assert gaps[1] < gaps[0]


def test_the_norm_loss_is_of_rows_less_the_bias() -> None:
    dictionary, x = make_dictionary(TopAFA.configure(n_features=24), 8), torch.randn(20, 8)
    dictionary.b_dec_D.data.fill_(0.5)
    terms = dictionary.loss_terms(x, x, {}, dictionary.initial_state(), Progress(0, 1, 1, 1000))
    gaps_N = dictionary.encode(x).to_dense().norm(dim=1) - (x - 0.5).norm(dim=1)
    torch.testing.assert_close(terms.losses["afa"], gaps_N.square().mean())
    assert dictionary.loss_weights(Progress(0, 1, 1, 1000))["afa"] == 8 / 32


def test_epsilon_lower_bound() -> None:
    bound = epsilon_lower_bound_N(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 0.0]), 4)
    assert bound[0].item() == pytest.approx(1.0) and bound[1].isnan()
    per_row = epsilon_lower_bound_N(torch.tensor([4.0, 4.0]), torch.tensor([1.0, 1.0]), torch.tensor([2, 1]))
    assert per_row[0].item() == pytest.approx(3.0) and per_row[1].isnan()
