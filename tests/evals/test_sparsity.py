"""Sparsity figures on codes that are planted one by one."""

import math

import numpy as np
import pytest
import torch
from small_hosts import Given, by_name, row_subject

from saetools.activations.base import ActivationBatch
from saetools.dictionaries.gradient import Gradient
from saetools.dictionaries.itda import ITDA
from saetools.dictionaries.topk import TopK
from saetools.evals.rows import coded_rows
from saetools.evals.sparsity import Sparsity, silent_in
from saetools.functional.zipf import zipf_mandelbrot_fit


def figures(code_NF, n_tokens=10**6, per_document=16, **settings):
    rows = torch.stack([torch.arange(len(code_NF)).float(), torch.ones(len(code_NF))], 1)
    subject = row_subject(Given(code_NF), rows, batch=33, per_document=per_document)
    return by_name(Sparsity(n_tokens=n_tokens, **settings).run(subject))


def test_planted_counts():
    code = torch.zeros(1000, 6)
    code[:500, 0] = 1.0
    code[:2, 1] = -3.0  # signed values fire
    code[::4, 2] = 0.5
    code[7, 3] = 1e-30
    found = figures(code, rare_below=0.002, dense_above=0.25)  # what lies on a border is neither
    assert found["l0_mean"].value == pytest.approx((500 + 2 + 250 + 1) / 1000)
    l0 = (code != 0).sum(1).double()
    assert found["l0_sd"].value == pytest.approx(float(l0.std(correction=0)))
    assert found["l0_sd"].spread[0] < found["l0_sd"].value < found["l0_sd"].spread[1]
    assert found["dead_fraction"].value == pytest.approx(2 / 6)
    assert found["rare_fraction"].value == pytest.approx(1 / 6)
    assert found["dense_fraction"].value == pytest.approx(1 / 6)
    assert found["dead_fraction"].n == 1000 and "1,000 tokens" in found["dead_fraction"].note
    histogram = found["rare_fraction"].series
    assert sum(histogram["features"]) == 4
    assert histogram["features"][-4:] == [0, 1, 1, 0]  # 0.25 and 0.5 lie below and above 10^-0.5
    assert histogram["features"][0] == 1  # 1 / 1000


def test_quantiles_are_exact():
    code = torch.ones(101, 101).tril()[torch.randperm(101)]  # every L0 once
    series = figures(code)["l0_mean"].series
    l0 = (code != 0).sum(1).numpy()
    expected = np.quantile(l0, series["quantile"], method="inverted_cdf")
    assert series["l0"] == expected.tolist()


def test_dead_curve_is_the_expectation_over_subsamples():
    """Brute force: how often is a feature silent in half of the rows, drawn at random?"""
    generator = np.random.default_rng(0)
    code = torch.from_numpy((generator.random((1024, 200)) < np.geomspace(1e-3, 0.05, 200)).astype(np.float32))
    series = figures(code)["dead_fraction"].series
    half = series["dead_fraction"][series["tokens"].index(512)]
    drawn = [float((code[generator.permutation(1024)[:512]].sum(0) == 0).double().mean()) for _ in range(200)]
    assert half == pytest.approx(np.mean(drawn), abs=0.01)
    assert series["dead_fraction"][-1] == float((code.sum(0) == 0).double().mean())


def test_the_share_left_silent_is_exact():
    counts = torch.tensor([0, 1, 3, 7, 8, 10])
    exact = [math.comb(10 - c, 3) / math.comb(10, 3) for c in counts.tolist()]
    np.testing.assert_allclose(silent_in(3, 10, counts), exact, rtol=1e-12)
    np.testing.assert_allclose(silent_in(500_000, 1_000_000, torch.tensor([1])), 0.5, rtol=1e-7)


def test_planted_law_is_recovered():
    n, rank = 20_000, np.arange(1, 401)
    counts = (0.5 * n * ((rank + 3.0) / 4) ** -1.2).round().astype(int)
    code = torch.zeros(n, 400)
    for f, count in enumerate(counts):
        code[:count, 399 - f] = 1
    law = figures(code)
    assert law["zipf_exponent"].value == pytest.approx(1.2, rel=0.05)
    assert law["zipf_exponent"].series["offset"][0] == pytest.approx(3, rel=0.2)
    assert law["zipf_exponent"].series["rms_log_error"][0] < 0.05
    assert law["under_used_fraction"].value == 0
    code[:, :100] = 0
    assert figures(code)["under_used_fraction"].value == pytest.approx(0.25)


def test_spread_of_the_law_is_over_documents():
    """As drawn by hand: documents of ten rows, whose features fire more or less often together."""
    generator = np.random.default_rng(0)
    law = 0.6 * np.arange(1.0, 61) ** -0.8
    eager = generator.gamma(2, 0.5, (40, 1))  # a document's share
    fires_GRF = generator.random((40, 10, 60)) < np.minimum(1, law * eager)[:, None]
    found = figures(torch.from_numpy(fires_GRF.reshape(400, 60).astype(np.float32)), per_document=10)
    counts_GF = fires_GRF.sum(1)
    drawn = [counts_GF[generator.integers(0, 40, 40)].sum(0) for _ in range(400)]
    dense = [(counts > 0.1 * 400).mean() for counts in drawn]
    exponents = [zipf_mandelbrot_fit(counts, 400).exponent for counts in drawn]
    for name, values in (("dense_fraction", dense), ("zipf_exponent", exponents)):
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name].spread == pytest.approx((low, high), abs=0.3 * (high - low)), name
        assert found[name].spread[0] <= found[name].value <= found[name].spread[1], name


def test_severity_is_the_ratio_of_mean_to_deviation():
    code = torch.zeros(100, 3)
    record = figures(code)["outlier_severity"]
    x = np.stack([np.arange(100), np.ones(100)], 1)
    assert record.value == pytest.approx(np.linalg.norm(x.mean(0)) / np.linalg.norm(x.std(0)), rel=1e-9)
    assert figures(code)["l0_mean"].value == 0 and figures(code)["dead_fraction"].value == 1


def test_rare_features_are_seen_where_one_firing_is_rare():
    """Of 100 tokens each feature that fires does so in 1 % or more: none is rarer, and that is no finding."""
    x = torch.randn(100, 5)
    dictionary = TopK(TopK.configure(n_features=40, k=1), 5)
    for rare_below in (1e-4, 0.01, 0.011):
        found = by_name(Sparsity(rare_below=rare_below).run(row_subject(dictionary, x)))["rare_fraction"]
        assert (found.value is not None) == (rare_below > 0.01)
        assert ("is not below" in found.note) == (rare_below <= 0.01) and found.note.startswith("over 100 tokens")
        assert sum(found.series["features"]) > 0


def test_permuting_features_changes_nothing(gaussian):
    dictionary = TopK(TopK.configure(n_features=40, k=4), 5)
    base = by_name(Sparsity(rare_below=0.01).run(row_subject(dictionary, gaussian)))
    order = torch.randperm(40)
    with torch.no_grad():
        for name in ("W_enc_FD", "W_dec_FD", "b_enc_F"):
            getattr(dictionary, name).copy_(getattr(dictionary, name)[order])
    for name, record in by_name(Sparsity(rare_below=0.01).run(row_subject(dictionary, gaussian, batch=9))).items():
        assert record.value == pytest.approx(base[name].value, rel=1e-9), name


def test_rows_are_cut_to_the_limit_and_the_stream_is_closed(gaussian):
    subject = row_subject(TopK(TopK.configure(n_features=8, k=1), 5), gaussian, batch=64)
    seen = [len(rows.x_ND) for rows in coded_rows(subject, 100)]
    assert seen == [64, 36]


def test_fields_of_the_rows_reach_the_dictionary(gaussian):
    dictionary, fields = Gradient(Gradient.configure(n_features=20, k=3, beta=5.0), 5), {"grad": gaussian[64:128]}
    subject = row_subject(dictionary, gaussian)
    batch = ActivationBatch(gaussian[:64], subject.heldout.where[:64], fields)
    subject.heldout.batches = lambda start: (numbered for numbered in [(0, batch)])
    (rows,) = coded_rows(subject, 64)
    assert rows.code.to_dense().equal(dictionary.encode(batch.x_ND, fields).to_dense())
    assert not rows.code.to_dense().equal(dictionary.encode(batch.x_ND).to_dense())


def test_places_without_an_atom_are_capacity_and_not_dead():
    """Three atoms in eight places, of which one never fires."""
    dictionary = ITDA(ITDA.configure(n_features=8, k=1), 2)
    with torch.no_grad():
        dictionary.W_dec_FD[:3] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-(0.5**0.5), 0.5**0.5]])
        dictionary.n_atoms.fill_(3)
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).repeat(50, 1)
    found = by_name(Sparsity().run(row_subject(dictionary, rows)))
    assert found["dead_fraction"].value == pytest.approx(1 / 3)
    assert found["dense_fraction"].value == pytest.approx(2 / 3)
    assert found["unused_capacity"].value == pytest.approx(5 / 8)
    assert "3 of 8" in found["unused_capacity"].note
    empty = by_name(Sparsity().run(row_subject(ITDA(ITDA.configure(n_features=8, k=1), 2), rows)))
    assert empty["dead_fraction"].value is None and empty["unused_capacity"].value == 1
