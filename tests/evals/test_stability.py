"""Dictionaries that share all, some or none of their features."""

from dataclasses import replace

import pytest
import torch
from small_hosts import Given, by_name, row_subject

from saetools.dictionaries.itda import ITDA
from saetools.errors import MismatchError
from saetools.evals.base import NotApplicableError
from saetools.evals.stability import Stability


def dictionary(atoms_FD):
    return Given(torch.zeros(1, len(atoms_FD)), atoms_FD)


def figures(own, gaussian, **others):
    subject = replace(row_subject(dictionary(own), gaussian), others={n: dictionary(a) for n, a in others.items()})
    return by_name(Stability().run(subject))


def test_a_permuted_copy_is_shared_wholly(gaussian):
    own = torch.randn(60, 40)
    found = figures(own, gaussian, twin=own[torch.randperm(60)] * 2)
    assert found["shared_features"].value == 1
    assert found["matched_cosine"].value == pytest.approx(1, abs=1e-5)
    assert found["shared_features_chance"].value < 0.05
    assert found["matched_cosine_chance"].value < 0.6
    subject = replace(row_subject(dictionary(own), gaussian), others={"twin": dictionary(own)}, seed=1)
    assert by_name(Stability().run(subject))["matched_cosine_chance"].value != found["matched_cosine_chance"].value


def test_what_the_others_are_called_changes_no_figure(gaussian):
    """A path, as it was typed, had drawn the atoms that chance is measured with."""
    own, other = torch.randn(60, 40), torch.randn(50, 40)
    one, two = figures(own, gaussian, relative=other), figures(own, gaussian, absolute=other)
    assert {name: record.value for name, record in one.items()} == {name: record.value for name, record in two.items()}


def test_half_shared_and_each_other_in_the_series(gaussian):
    own = torch.randn(60, 40)
    half = torch.cat([own[:30], torch.randn(30, 40)])
    found = figures(own, gaussian, half=half, all=own)
    assert found["shared_features"].series == {"half": [0.5], "all": [1.0]}
    assert found["shared_features"].value == pytest.approx(0.75)
    low, high = found["shared_features"].spread
    assert low < 0.75 < high


def test_a_smaller_one_leaves_features_without_a_partner(gaussian):
    own = torch.randn(60, 40)
    found = figures(own, gaussian, small=own[:15])
    assert found["shared_features"].value == 0.25
    assert found["matched_cosine"].value == pytest.approx(1, abs=1e-5)


def test_the_interval_is_of_the_mean_of_means(gaussian):
    """A small other, whose atoms are found, counts as much as a large one, whose atoms are not."""
    own = torch.randn(60, 40)
    found = figures(own, gaussian, small=own[:6], large=torch.randn(60, 40))
    record = found["matched_cosine"]
    (small,), (large,) = record.series["small"], record.series["large"]
    assert small == pytest.approx(1, abs=1e-5) and large < 0.6
    assert record.value == pytest.approx((small + large) / 2)
    low, high = record.spread
    assert low < record.value < high and high - low < 0.1
    assert record.n == 60 and figures(own, gaussian, small=own[:6])["matched_cosine"].n == 6


def test_random_dictionaries_are_at_chance(gaussian):
    found = figures(torch.randn(200, 40), gaussian, other=torch.randn(200, 40))
    for name in ("matched_cosine", "nearest_cosine"):
        assert found[name].value == pytest.approx(found[f"{name}_chance"].value, abs=0.02)


def test_other_widths_and_no_others(gaussian):
    with pytest.raises(MismatchError, match="'wide' is for width 7"):
        figures(torch.randn(5, 6), gaussian, wide=torch.randn(5, 7))
    assert "other dictionaries" in Stability().missing(row_subject(dictionary(torch.randn(5, 6)), gaussian))


def test_the_one_whose_atoms_are_no_numbers_is_named(gaussian):
    own = torch.randn(60, 40)
    with pytest.raises(NotApplicableError, match="atoms of 'runs/diverged' are not finite"):
        figures(own, gaussian, good=own, **{"runs/diverged": own * torch.nan})


def test_another_without_any_atom(gaussian):
    """One whose construction found nothing yet."""
    empty = ITDA(ITDA.configure(n_features=8, k=1), 40)
    for own, other in ((dictionary(torch.randn(60, 40)), empty), (empty, dictionary(torch.randn(60, 40)))):
        found = by_name(Stability().run(replace(row_subject(own, gaussian), others={"other": other})))
        assert found["matched_cosine"].value is None and not found["shared_features"].value


def test_places_without_an_atom_are_not_features_that_are_missing():
    made = []
    for _ in range(2):
        constructed = ITDA(ITDA.configure(n_features=8, k=1), 3)
        with torch.no_grad():
            constructed.W_dec_FD[:3] = torch.eye(3)
            constructed.n_atoms.fill_(3)
        made.append(constructed)
    subject = replace(row_subject(made[0], torch.randn(5, 3)), others={"other": made[1]})
    found = by_name(Stability().run(subject))
    assert found["shared_features"].value == 1 and found["shared_features"].n == 3
    assert found["shared_features"].spread is None
    assert found["shared_features"].note == "3 features are too few for an interval"


def test_a_signed_copy_is_shared_whichever_way_its_atoms_point(gaussian):
    own = torch.randn(60, 40)
    one, other = dictionary(own), dictionary(own * torch.tensor([1.0, -1.0]).repeat(30)[:, None])
    subject = replace(row_subject(one, gaussian), others={"negated": other})
    assert by_name(Stability().run(subject))["shared_features"].value < 0.6
    other.signed = True  # one of the two suffices: a signed atom is found by features of either of its directions
    found = by_name(Stability().run(subject))
    assert found["shared_features"].value == 1 and found["nearest_cosine"].value == pytest.approx(1, abs=1e-5)
    assert found["shared_features_chance"].value < 0.1
