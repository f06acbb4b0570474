"""What no figure may depend on: batches, the order of documents, the numbering of features, the units of the host.

Every registered evaluation is held to them on the subjects that it can be run on; nothing here knows one by name but
where a figure is about what is changed.
"""

import copy
from dataclasses import replace

import pytest
import torch
from every_evaluation import FEW, NAMES, figures, runnable, subject_for
from small_hosts import LinearHost

from saetools.dictionaries.abs_topk import AbsTopK

UNITS = ("explained_variance_saebench", "logit_influence")
"""Figures that are in the units of the rows, and say so."""

DRAWN_BY_NUMBER = {
    "steering": [
        f"{figure}{control}"
        for figure in ("steering_area", "class_steering_area", "logit_influence", "perplexity_cost")
        for control in ("_random", "_shuffled")
    ],
    "interpretability": [
        *(f"{kind}_purity_chance" for kind in ("token", "bigram", "class")),
        *(f"{judge}_{task}" for judge in ("ngram", "class") for task in ("detection", "fuzzing")),
    ],
}
"""What a feature is compared with, and the contexts that it is judged on, are drawn by its number. All are taken."""


def assert_equal(found, base, but=("!",), rel=1e-6):
    assert found.keys() == base.keys()
    for name, record in base.items():
        if not name.startswith(but) and record.value is not None:
            assert found[name].value == pytest.approx(record.value, rel=rel, abs=1e-9), name
            assert found[name].n == record.n, name


@pytest.mark.parametrize("name", NAMES)
def test_batches(name):
    base = figures(name, runnable(name))
    assert base, "the evaluation gives figures on this subject"
    for host_batch in (3, 16):
        assert_equal(figures(name, subject_for(name, host_batch=host_batch)), base)


@pytest.mark.parametrize("name", NAMES)
def test_batches_where_not_all_is_read(name):
    """Where the text read ends, and what of the last window counts, is decided by tokens and not by batches."""
    changes = FEW.get(name, {})
    base = figures(name, runnable(name), **changes)
    assert base, "the evaluation gives figures on this subject"
    assert_equal(figures(name, subject_for(name, host_batch=3), **changes), base)


@pytest.mark.parametrize(
    ("name", "changes"), [("loss_recovered", {"n_tokens": 41}), ("steering", {"n_predictions": 41})]
)
def test_order_of_documents_where_predictions_are_drawn(name, changes, monkeypatch):
    base = figures(name, runnable(name), **changes)
    monkeypatch.setattr("saetools.text.packing.HELDOUT_ORDER", 1)
    assert_equal(figures(name, subject_for(name), **changes), base)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_documents(name, monkeypatch):
    base = figures(name, runnable(name))
    monkeypatch.setattr("saetools.text.packing.HELDOUT_ORDER", 1)
    assert_equal(figures(name, subject_for(name)), base)


@pytest.mark.parametrize("name", NAMES)
def test_numbering_of_features(name):
    subject = runnable(name)
    base = figures(name, subject)
    dictionary = subject.dictionary
    order = torch.randperm(dictionary.config.n_features, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for part in ("W_enc_FD", "W_dec_FD", "b_enc_F"):
            getattr(dictionary, part).copy_(getattr(dictionary, part)[order])
    found = figures(name, subject)
    for drawn in DRAWN_BY_NUMBER.get(name, ()):
        del found[drawn], base[drawn]
    assert_equal(found, base, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_sign_of_features_whose_codes_are_signed(name):
    """Every second feature negated, atom and encoder: the reconstruction is the same, and so is every figure."""
    subject = runnable(name)
    signed = AbsTopK(AbsTopK.configure(n_features=24, k=3), subject.dictionary.d_model, seed=1)
    negated = copy.deepcopy(signed)
    with torch.no_grad():
        for part in (negated.W_enc_FD, negated.W_dec_FD, negated.b_enc_F):
            part[::2] *= -1
    base = figures(name, replace(subject, dictionary=signed))
    assert base, "the evaluation gives figures on this subject"
    assert_equal(figures(name, replace(subject, dictionary=negated)), base, rel=1e-5)


@pytest.mark.parametrize("name", ["reconstruction", "sparsity", "geometry", "loss_recovered", "steering"])
def test_units_of_the_host(name):
    """Activations ten times as large, with a dictionary and an unembedding to match, give the same figures."""
    base = figures(name, subject_for(name))

    class Louder(LinearHost):
        def __init__(self):
            super().__init__()
            self.embedding, self.U = 10 * self.embedding, self.U / 10

    subject = subject_for(name, host=Louder())
    with torch.no_grad():
        subject.dictionary.fold_scale_(0.1)
    assert_equal(figures(name, subject), base, but=UNITS, rel=1e-4)
