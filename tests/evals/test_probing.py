"""Probes on rows whose labels are planted in known coordinates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_classes import N_CLASSES, noise, planted_rows, planted_subject, sources, sparse_copy
from sklearn.linear_model import LogisticRegression
from small_hosts import by_name, scaled_copy, text_subject

from saetools.dictionaries.code import SparseCode
from saetools.evals.base import NotApplicableError
from saetools.evals.labelled import class_groups, collect_labelled, labelled_documents, python_labeller
from saetools.evals.probes import Firings, encode_rows, random_dictionary, train_probe
from saetools.evals.probing import Probing
from saetools.evals.python_labels import CLASSES
from saetools.evals.references import References
from saetools.evals.token_classes import read_token_classes

SMALL = {"n_train": 60, "n_test": 40, "min_rows": 20, "ks": (1, 2)}


def test_planted_coordinates_are_told_apart_by_one_feature():
    found = by_name(Probing(**SMALL).run(planted_subject()))
    for name in ("probe_dense", "probe_top1", "probe_top2"):
        assert found[name].value > 0.99, name
    assert {"keyword", "docstring", "nested", "self"} <= set(found["probe_top1"].series)
    assert found["probe_top1_random"].value < 0.9
    low, high = found["probe_top1_random"].spread
    assert low <= found["probe_top1_random"].value <= high


def test_rows_that_know_nothing_are_at_chance():
    make = lambda document, positions: torch.from_numpy(noise(document, positions)).float()  # noqa: E731
    found = by_name(Probing(**SMALL).run(planted_subject(make)))
    for name, record in found.items():
        assert record.value == pytest.approx(0.5, abs=0.08), name


def collect(subject=None, n_tokens=10**6, per_group=(200, 100)):
    return collect_labelled(
        subject or planted_subject(), python_labeller, class_groups(), n_tokens, per_group, lambda n: None
    )


def test_halves_of_signed_features():
    code_NF = torch.randn(7, 5) * (torch.rand(7, 5) < 0.5)
    halves = Firings.of(SparseCode.from_dense(code_NF)).halves()
    expected = torch.cat([code_NF.relu(), (-code_NF).relu()], 1)
    np.testing.assert_allclose(halves.columns(torch.arange(10)), expected.numpy())
    assert halves.n_features == 10


def test_rows_belong_to_their_labels_and_splits_share_no_document():
    rows = collect()
    held = [(c, name) for c, name in enumerate(CLASSES) if rows.size(name)]
    assert len(held) > 10
    for c, name in held:
        for split in ("train", "test"):
            chosen, y = rows.task(name, f"not {name}", split)
            assert y.mean() == 0.5
            np.testing.assert_array_equal(rows.x_ND[chosen][:, c].numpy() > 1, y)
    documents = {split: set(rows.document_N[rows.members["keyword", split]]) for split in ("train", "test")}
    assert documents["train"] and documents["test"] and not documents["train"] & documents["test"]
    other = collect(replace(planted_subject(), seed=1))
    assert set(other.document_N[other.members["keyword", "test"]]) != documents["test"], "the seed decides the split"


def test_labels_are_those_of_the_first_character_that_is_no_blank():
    found = python_labeller("def f():\n    return 1", ["def", " f", "():\n", "    return", " 1"])
    named = [{name for name, holds in zip(CLASSES, row, strict=True) if holds} for row in found]
    assert named == [{"keyword"}, {"defined_name"}, {"operator"}, {"keyword"}, {"number"}]


def test_the_sample_is_uniform_over_the_tokens_allowed():
    subject = planted_subject()
    few = collect(subject, n_tokens=1000)
    order = [d for batch in subject.tokens.batches() for d in batch.document_B.tolist()]
    first = list(dict.fromkeys(order))[:7]
    assert set(few.document_N) <= set(first), "the first thousand characters are in the first documents read"
    met = [(len(ids), len(found)) for _, ids, found in labelled_documents(subject, python_labeller, 1000)]
    assert [sum(n) for n in zip(*met, strict=True)] == [1000, 1000]


class WithoutOutliers:
    """The rows of a source but for position 5 of every document, a keyword's last, and the documents that were read."""

    def __init__(self, source):
        self.source, self.documents = source, []

    def batches(self, start=0):
        for number, rows in self.source.batches(start):
            self.documents += rows.where_N2[:, 0].tolist()
            yield number, rows.select(rows.where_N2[:, 1] != 5)


@pytest.mark.parametrize("n_tokens", [1000, 10**6])
def test_rows_are_read_as_far_as_they_are_wanted(n_tokens):
    """A wanted row that is missing is not looked for to the end; every other document is in another language."""
    texts = [source if i % 2 else source[:-1] + "(" for i, source in enumerate(sources())]
    subject = text_subject(texts, planted_rows, sparse_copy())
    order = list(dict.fromkeys(d for b in subject.tokens.batches() for d in b.document_B.tolist() if d >= 0))
    subject = replace(subject, heldout=WithoutOutliers(subject.heldout))
    rows = collect(subject, n_tokens=n_tokens)
    assert (rows.x_ND[rows.members["keyword", "train"], CLASSES.index("keyword")] > 1).all(), (
        "no other row in its place"
    )
    fetched = set(subject.heldout.documents)
    subject.heldout.documents.clear()
    classes = read_token_classes(subject, n_tokens, 256)
    classes.announced(subject, [0], 0.3)
    for read in (fetched, set(subject.heldout.documents)):
        assert set(classes.labels) <= read, "all that is labelled is read"
        assert not read & set(order[12:]) or n_tokens > 1000


def test_other_texts_are_skipped():
    subject = text_subject(["def f(:"] * 5, planted_rows, scaled_copy(N_CLASSES, 1.0))
    with pytest.raises(NotApplicableError, match="another language"):
        collect(subject)
    with pytest.raises(NotApplicableError, match="raise n_tokens, or give text of more documents"):
        Probing(**SMALL, n_tokens=50).run(planted_subject())


def test_mean_difference_and_columns_by_dense_algebra():
    dense = torch.relu(torch.randn(50, 12))
    code = Firings.of(SparseCode.from_dense(dense))
    rows, y = np.arange(5, 35), np.arange(30) % 3 == 0
    chosen = dense[5:35].double()
    expected = chosen[torch.from_numpy(y)].mean(0) - chosen[torch.from_numpy(~y)].mean(0)
    torch.testing.assert_close(code.mean_difference_F(rows, y), expected)
    np.testing.assert_array_equal(code.columns(torch.tensor([7, 2])), dense[:, [7, 2]].double().numpy())


def test_the_probe_is_in_the_units_of_the_rows():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 3)) * [1, 1000, 0] + [5, 0, 7]
    y = x[:, 1] > 100
    probe = train_probe(x, y)
    assert probe.correct(x, y).mean() > 0.97
    assert probe.w_D[2] == 0 and abs(probe.w_D[1]) * 1000 > abs(probe.w_D[0])
    z = np.stack([(column - column.mean()) / max(column.std(), 1e-9) for column in x.T], 1)
    fitted = LogisticRegression(max_iter=200).fit(z, y)
    np.testing.assert_allclose(probe.scores(x), fitted.decision_function(z), rtol=1e-6, atol=1e-9)


def test_random_dictionary_has_the_same_size_and_sparsity():
    subject = planted_subject()
    x = torch.randn(300, N_CLASSES)
    code = encode_rows(subject.dictionary, x, n_chunk=64)
    made = random_dictionary(subject.dictionary, x, code, 0)
    assert made.config.n_features == 2 * N_CLASSES
    assert made.config.k == round(float((subject.dictionary.encode(x).to_dense() != 0).sum(1).double().mean()))
    torch.testing.assert_close(made.b_dec_D, x.mean(0))
    dense, every = made.encode(x).to_dense().detach().double(), torch.arange(2 * N_CLASSES)
    np.testing.assert_array_equal(encode_rows(made, x, n_chunk=64).columns(every), dense.numpy())


def test_labelled_rows_are_read_once_for_all_dictionaries(monkeypatch):
    subject = replace(planted_subject(), references=References())
    ticked = []
    first = collect_labelled(subject, python_labeller, class_groups(), 10**6, (200, 100), ticked.append)
    monkeypatch.setattr("saetools.evals.labelled.labelled_documents", None)
    again = collect_labelled(subject, python_labeller, class_groups(), 10**6, (200, 100), ticked.append)
    assert again is first and sum(ticked) == 2 * first.n_read
    for of, sizes in ((subject, (20, 10)), (replace(subject, seed=1), (200, 100))):
        with pytest.raises(TypeError):  # another size or seed, which would have to be read
            collect_labelled(of, python_labeller, class_groups(), 10**6, sizes, ticked.append)


def test_labellers_of_one_name_are_told_apart():
    """As made by one function with other arguments: the second had got the rows of the first."""

    def labels_where(name):
        def labeller(text, tokens):
            found = python_labeller(text, tokens)
            return found[:, [CLASSES.index(name)]]

        return labeller

    subject, groups = replace(planted_subject(), references=References()), class_groups(("it",))
    one, two = (
        collect_labelled(subject, labels_where(name), groups, 10**6, (200, 100), lambda n: None)
        for name in ("comment", "string")
    )
    places = [rows.x_ND[rows.members["it", "train"]] for rows in (one, two)]
    assert places[0].shape != places[1].shape or not torch.equal(*places)
