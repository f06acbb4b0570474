"""Matryoshka: nested prefixes."""

import pytest
import torch

from saetools.dictionaries.base import Progress, make_dictionary
from saetools.dictionaries.matryoshka import Matryoshka
from saetools.dictionaries.mutual_choice import MutualChoice
from saetools.errors import ConfigError


def test_groups_must_end_at_f() -> None:
    assert Matryoshka.configure(n_features=64, k=3).group_ends() == (4, 8, 16, 32, 64)
    for fractions in ((0.5, 0.4), (0.5, 0.6), (0.001, 0.999), (-0.5, 1.5)):
        with pytest.raises(ConfigError, match="Use positive fractions"):
            make_dictionary(Matryoshka.configure(n_features=64, k=3, group_fractions=fractions), 8)


def test_loss_is_the_mean_over_prefixes() -> None:
    config = Matryoshka.configure(n_features=8, k=3, group_fractions=(0.25, 0.75), aux_weight=0)
    dictionary, x = make_dictionary(config, 6).double(), torch.randn(20, 6).double()
    terms = dictionary.loss_terms(x, x, {}, dictionary.initial_state(), Progress(0, 1, 1, 1))
    code = terms.code.to_dense()
    errors = [(x - code[:, :end] @ dictionary.W_dec_FD[:end]).square().sum(1).mean() for end in (2, 8)]
    torch.testing.assert_close(terms.losses["nested_reconstruction"], (errors[0] + errors[1]) / 2)
    torch.testing.assert_close(terms.residual_ND, x - code @ dictionary.W_dec_FD)


def test_one_group_is_mutual_choice() -> None:
    x = torch.randn(20, 6)
    one = make_dictionary(Matryoshka.configure(n_features=8, k=3, group_fractions=(1.0,)), 6)
    other = make_dictionary(MutualChoice.configure(n_features=8, k=3), 6)
    ours, theirs = (d.loss_terms(x, x, {}, d.initial_state(), Progress(0, 1, 1, 0)) for d in (one, other))
    torch.testing.assert_close(ours.losses["nested_reconstruction"], theirs.losses["reconstruction"])
    torch.testing.assert_close(ours.losses["auxk"], theirs.losses["auxk"])
