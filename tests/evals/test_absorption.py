"""A dictionary whose letter feature gives way to a word's feature, by construction."""

import numpy as np
import pytest
import torch
from small_hosts import by_name, text_subject

from saetools.dictionaries.code import SparseCode
from saetools.dictionaries.topk import TopK
from saetools.evals.absorption import LETTERS, Absorption, _other_letter, first_letters

D = 8
TEXT = "abcd abdc cadb bcda" * 4


class Letter:
    """Coordinate c holds letter c (a to d); feature c fires for it, but where x[7] is 1 feature 4 + c does."""

    device, d_model, shift = torch.device("cpu"), D, 0.0

    def __init__(self, absorbs, leans=1.0, sign=1.0, aside=0.0):
        self.absorbs, self.sign, self.config = absorbs, sign, TopK.configure(n_features=8, k=1)
        self.atoms = sign * torch.cat([torch.eye(D)[:4], torch.eye(D)[:4] * leans + torch.eye(D)[6] * aside])

    def directions(self):
        return self.atoms

    def encode(self, x_ND, fields=None):
        x_ND = x_ND - self.shift
        fires = (x_ND[:, :4] > 1) * 2.0
        moved = (x_ND[:, 7:] > 0.5) & torch.tensor(self.absorbs)
        return SparseCode.from_dense(self.sign * torch.cat([fires * ~moved, fires * moved], 1))


def rows(document, positions):
    letters = np.array(["abcd".find(c) for c in TEXT])[positions]
    x = 0.05 * np.random.default_rng(document).normal(size=(len(TEXT), D))[positions]
    x[np.arange(len(letters)), np.where(letters < 0, 5, letters)] += 2
    x[:, 7] = positions % 3 == 0
    return torch.from_numpy(x).float()


def figures(dictionary):
    subject = text_subject([TEXT] * 12, lambda *places: rows(*places) + dictionary.shift, dictionary)
    return by_name(Absorption(n_train=200, n_test=100, min_rows=20, n_main=1).run(subject))


def test_absorbed_tokens_are_counted():
    found = figures(Letter(absorbs=True))
    assert set(found["absorption"].series) == set("abcd")
    # at a third of the positions the copy fires with the whole direction of the letter
    assert found["absorption"].value == pytest.approx(1 / 3, abs=0.1)
    assert found["first_letter_dense"].value == 1


def test_what_all_rows_have_in_common_is_not_to_be_carried():
    shifted = Letter(absorbs=True)
    shifted.shift = 5.0 * torch.randn(D, generator=torch.Generator().manual_seed(0))
    assert figures(shifted)["absorption"].value == pytest.approx(figures(Letter(absorbs=True))["absorption"].value)


def test_faithful_features_absorb_nothing():
    found = figures(Letter(absorbs=False))
    assert found["absorption"].value == 0
    assert found["first_letter_f1"].value == 1


@pytest.mark.parametrize("absorbs", [True, False])
def test_a_negated_twin_is_the_same_dictionary(absorbs):
    straight, negated = figures(Letter(absorbs)), figures(Letter(absorbs, sign=-1.0))
    assert {name: r.value for name, r in negated.items()} == {name: r.value for name, r in straight.items()}


def test_silence_without_a_carrier_is_no_absorption():
    assert figures(Letter(absorbs=True, leans=-1.0))["absorption"].value == 0
    assert figures(Letter(absorbs=True, aside=20.0))["absorption"].value == 0, "it carries all, with a cosine of 0.05"


def test_first_letters():
    found = first_letters("", [" Apple", "9", "", "zoo", "\n", "é"])
    assert [("".join(np.array(LETTERS)[row])) for row in found] == ["a", "", "", "z", "", ""]
    assert first_letters("", []).shape == (0, 26)
    assert _other_letter(0)(first_letters("", ["a", "b", "9"])).tolist() == [False, True, False]
