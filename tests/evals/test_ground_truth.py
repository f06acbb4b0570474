"""Dictionaries that are right, absorbing, splitting or random, on planted rows."""

import pytest
import torch
from small_hosts import by_name, row_subject

from saetools.activations.planted import Planted, PlantedBlock, PlantedConfig, PlantedSource
from saetools.dictionaries.abs_topk import AbsTopK
from saetools.dictionaries.code import SparseCode
from saetools.dictionaries.topk import TopK
from saetools.evals.base import Subject
from saetools.evals.ground_truth import GroundTruth

D, F = 24, 16


class FromTruth:
    """Reads the planted code off the row (pseudo-inverse; fewer atoms than dimensions) and may spoil it."""

    device, signed = torch.device("cpu"), False

    def __init__(self, planted, spoil=None, atoms=None):
        self.inverse = torch.linalg.pinv(planted.atoms_FD.double()).float()
        self.spoil = spoil or (lambda code_NF: code_NF)
        self.atoms = planted.atoms_FD if atoms is None else atoms

    def directions(self):
        return self.atoms

    def encode(self, x_ND):
        code = x_ND @ self.inverse
        return SparseCode.from_dense(self.spoil(torch.where(code > 0.1, code, 0.0)))


def planted(**law):
    return Planted(PlantedConfig(**{"d_model": D, "n_features": F, "mean_active": 3, **law}), seed=0)


def figures(dictionary, law, n_tokens=2048, n_batches=4):
    source = PlantedSource(law, "heldout", n_batches, 512)
    return by_name(GroundTruth(n_tokens=n_tokens).run(Subject(dictionary, source.spec, source)))


def test_the_truth_is_perfect():
    law = planted()
    found = figures(FromTruth(law), law)
    for name in ("matched_cosine", "recovered_fraction", "support_precision", "support_recall", "support_f1"):
        assert found[name].value == pytest.approx(1), name
    assert found["support_auc"].value == 1 and found["spurious_fraction"].value == 0
    assert found["features_per_atom"].value == 1
    assert found["matched_cosine_chance"].value < 0.5
    assert found["recovered_fraction"].spread == found["support_auc"].spread == (1, 1)
    assert "absorption" not in found
    more = torch.cat([law.atoms_FD, torch.randn(4, D)])
    with_dead = figures(FromTruth(law, lambda code: torch.nn.functional.pad(code, (0, 4)), more), law)
    assert with_dead["spurious_fraction"].value == 0 and with_dead["spurious_fraction"].n == F, "the dead do not count"


class OneDraw(Planted):
    """The same 2,048 rows, whatever the size of its blocks."""

    def block(self, number, n_rows=1024, purpose="train"):
        whole, rows = super().block(0, 2048, purpose), slice(number * n_rows, (number + 1) * n_rows)
        return PlantedBlock(whole.x_ND[rows], whole.code_NF[rows])


@pytest.mark.parametrize("n_tokens", [2048, 700])
def test_batches_do_not_matter(n_tokens):
    law = OneDraw(PlantedConfig(d_model=D, n_features=F, mean_active=3, noise=0.1), seed=0)
    dictionary = TopK(TopK.configure(n_features=2 * F, k=3), D)
    base, *others = (
        by_name(GroundTruth(n_tokens=n_tokens).run(Subject(dictionary, source.spec, source)))
        for source in (PlantedSource(law, "heldout", 2048 // size, size) for size in (512, 128, 2048))
    )
    known = {name: record for name, record in base.items() if record.value is not None}
    assert len(known) >= 8 and known["support_f1"].n == n_tokens
    for found in others:
        for name, record in known.items():
            assert found[name].n == record.n and found[name].value == pytest.approx(record.value, rel=1e-6), name


def test_permuted_features_are_still_perfect_and_silent_ones_cost_recall():
    law, order = planted(), torch.randperm(F)
    found = figures(FromTruth(law, lambda code: code[:, order], law.atoms_FD[order]), law)
    assert found["support_f1"].value == 1

    def half(code):
        return code * (torch.arange(len(code)) % 2)[:, None]

    found = figures(FromTruth(law, half), law)
    assert found["support_precision"].value == 1
    assert found["support_recall"].value == pytest.approx(0.5, abs=0.05)
    assert found["support_f1"].value == pytest.approx(2 / 3, abs=0.05)
    assert found["support_recall"].spread is None and "too few" in found["support_recall"].note
    found = figures(FromTruth(law, half), law, n_tokens=8192, n_batches=16)
    low, high = found["support_recall"].spread
    assert low < found["support_recall"].value < high
    # half of the positives are tied with all of the negatives: 1/2 * 1 + 1/2 * 1/2
    assert found["support_auc"].value == pytest.approx(0.75, abs=0.03)


def test_splitting():
    """Two features per atom, each firing on one half of the range of the coefficient; one has a cosine of 0.8."""
    law = planted()
    aside = torch.linalg.qr(law.atoms_FD.T, mode="complete").Q[:, F : F + 1].T  # orthogonal to all atoms

    def split(code):
        return torch.cat([code * (code > 1), code * (code <= 1)], 1)

    found = figures(FromTruth(law, split, torch.cat([law.atoms_FD, 0.8 * law.atoms_FD + 0.6 * aside])), law)
    assert found["features_per_atom"].value == 2
    assert found["recovered_fraction"].value == 1
    assert found["support_recall"].value == pytest.approx(0.5, abs=0.05)


def test_hierarchy_of_the_truth_and_absorption():
    law = planted(children_per_parent=3, mean_active=4, zipf_exponent=0.0)
    found = figures(FromTruth(law), law)
    assert found["absorption"].value == 0 and found["parent_recall_with_child"].value == 1
    assert found["hierarchy_recovered"].value == 1
    children = torch.nonzero(law.parent_F != torch.arange(F))[:, 0]
    parents = law.parent_F[children]
    atoms = law.atoms_FD.clone()
    atoms[children] = torch.nn.functional.normalize(atoms[children] + atoms[parents], dim=1)

    def absorb(code):
        has_child = torch.zeros_like(code).index_add(1, parents, (code[:, children] != 0).float()) > 0
        return torch.where(has_child, 0.0, code)

    found = figures(FromTruth(law, absorb, atoms), law)
    assert found["absorption"].value == pytest.approx(1)
    assert found["parent_recall_alone"].value == 1 and found["parent_recall_with_child"].value == 0
    assert found["hierarchy_recovered"].value == 0
    # silent parents whose children do not point to them are misses, not absorption; nor are silent children
    assert figures(FromTruth(law, absorb), law)["absorption"].value == 0

    def half(code):
        return absorb(code) * (torch.arange(len(code)) % 2)[:, None]

    assert figures(FromTruth(law, half, atoms), law)["absorption"].value == pytest.approx(0.5, abs=0.1)

    def all_of_a_family(code):
        return code[:, law.parent_F]

    assert figures(FromTruth(law, all_of_a_family), law)["hierarchy_recovered"].value == 0, "neither is the other's"


def test_children_that_fire_too_seldom_to_tell_are_left_out():
    law = planted(children_per_parent=3, mean_active=3, zipf_exponent=1.5)
    counts_F = sum((law.block(number, 512, "heldout").code_NF != 0).sum(0) for number in range(4))
    enough = (counts_F >= 10) & (law.parent_F != torch.arange(F))
    assert 0 < enough.sum() < F * 3 // 4 and (counts_F[~enough] > 0).any()
    assert figures(FromTruth(law), law)["absorption"].n == enough.sum()


def test_random_features_are_at_chance_and_spurious():
    law = planted(n_features=200, d_model=64, mean_active=5)
    found = figures(TopK(TopK.configure(n_features=200, k=5), 64), law)
    assert found["matched_cosine"].value == pytest.approx(found["matched_cosine_chance"].value, abs=0.03)
    assert found["recovered_fraction"].value == 0
    assert found["spurious_fraction"].value > 0.9


def test_fewer_features_than_atoms():
    law = planted()
    found = figures(FromTruth(law, lambda code: code[:, :4], law.atoms_FD[:4]), law)
    low, high = found["recovered_fraction"].spread
    assert 0 <= low < 4 / F < high < 0.6
    assert found["recovered_fraction"].value == pytest.approx(4 / F)
    assert found["support_precision"].value == 1 and found["support_recall"].value < 1
    assert found["matched_cosine"].n == found["matched_cosine_chance"].n == F, "chance has as many without a partner"


def test_chance_is_of_as_many_atoms_as_there_are():
    law = planted()
    atoms = torch.cat([law.atoms_FD[:2], torch.zeros(40, D)])
    found = figures(FromTruth(law, lambda code: code[:, :1].expand(-1, 42) * (torch.arange(42) < 1), atoms), law)
    few = figures(FromTruth(law, lambda code: code[:, :2], law.atoms_FD[:2]), law)
    assert found["matched_cosine"].value == pytest.approx(2 / F)
    assert found["matched_cosine_chance"].value == few["matched_cosine_chance"].value < 2 / F
    none = figures(FromTruth(law, lambda code: 0 * code, torch.zeros(F, D)), law)
    assert none["matched_cosine_chance"].value == 0


def test_other_rows_are_refused(gaussian):
    assert "planted" in GroundTruth().missing(row_subject(None, gaussian))


@pytest.mark.parametrize("law", [{}, {"children_per_parent": 3}])
def test_signed_features_may_point_either_way(law):
    """Every second atom and encoder row negated: the same reconstruction, so the same figures, those of a tree too."""
    law = planted(**law)
    straight, negated = (AbsTopK(AbsTopK.configure(n_features=F, k=4), D) for _ in range(2))
    for dictionary, sign in ((straight, 1.0), (negated, -1.0)):
        signs = torch.ones(F, 1)
        signs[::2] = sign
        with torch.no_grad():
            dictionary.W_dec_FD.copy_(signs * (law.atoms_FD + 0.3 * law.atoms_FD.roll(1, 0)))
            dictionary.W_enc_FD.copy_(signs * torch.linalg.pinv(law.atoms_FD.double()).T.float())
    expected, found = figures(straight, law), figures(negated, law)
    assert found["recovered_fraction"].value == 1 and found["spurious_fraction"].value == 0
    assert {name: r.value for name, r in found.items()} == pytest.approx(
        {name: r.value for name, r in expected.items()}, rel=1e-5
    )


def test_the_chance_of_signed_features_is_of_either_sign():
    law = planted()
    unsigned, signed = (make(make.configure(n_features=F, k=4), D) for make in (TopK, AbsTopK))
    chance = "matched_cosine_chance"
    assert figures(signed, law)[chance].value > figures(unsigned, law)[chance].value
