"""Closed forms of reconstruction figures, and what they may not depend on."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_hosts import CONTEXT, by_name, host_subject, row_subject, scaled_copy

from saetools.activations.rows import RowsSource
from saetools.dictionaries.topk import TopK
from saetools.errors import DataError
from saetools.evals.base import Subject
from saetools.evals.reconstruction import Reconstruction, octave
from saetools.evals.sparsity import Sparsity


def figures(dictionary, x_ND, n_tokens=10_000, **source):
    return by_name(Reconstruction(n_tokens=n_tokens).run(row_subject(dictionary, x_ND, **source)))


def test_scaled_copy(gaussian):
    c, x = 0.9, gaussian.double()
    found = figures(scaled_copy(5, c), gaussian)
    mean_square, variance = x.square().sum(1).mean(), (x - x.mean(0)).square().sum(1).mean()
    expected = {
        "fvu": (1 - c) ** 2 * mean_square / variance,
        "explained_variance": 1 - (1 - c) ** 2,
        "explained_variance_saebench": 1 - (1 - c) ** 2 * mean_square / (mean_square - (mean_square / 5) ** 2),
        "cosine": 1.0,
        "norm_ratio": c,
        "relative_bias": c,
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(float(value), rel=1e-5), name
        assert found[name].n == 1000


def test_the_mean_has_fvu_one_and_a_shift_costs_only_fvu(gaussian):
    mean = gaussian.mean(0)
    assert figures(scaled_copy(5, 0.0, mean), gaussian)["fvu"].value == pytest.approx(1, rel=1e-6)
    shifted = figures(scaled_copy(5, 1.0, torch.tensor([1.0, 0, 0, 0, 0])), gaussian)
    variance = gaussian.double().var(0, correction=0).sum()
    assert shifted["fvu"].value == pytest.approx(float(1 / variance), rel=1e-4)
    assert shifted["explained_variance"].value == pytest.approx(1, abs=1e-9)


def test_batches_and_order_do_not_matter(gaussian):
    dictionary = TopK(TopK.configure(n_features=12, k=2), 5)
    base = figures(dictionary, gaussian, batch=1000)
    order = torch.from_numpy(np.random.default_rng(1).permutation(1000))
    for other in (figures(dictionary, gaussian, batch=7), figures(dictionary, gaussian, batch=100, order=order)):
        for name, record in base.items():
            assert other[name].value == pytest.approx(record.value, rel=1e-6), name
            assert other[name].spread == pytest.approx(record.spread, rel=1e-6), name


def test_brute_force_with_a_limit_inside_a_batch(gaussian):
    dictionary = TopK(TopK.configure(n_features=12, k=2), 5)
    dictionary.b_dec_D.data.fill_(0.1)
    gaussian[5] = 0  # has no ratio, and cosine 0
    found = figures(dictionary, gaussian, n_tokens=333, batch=100)
    x = gaussian[:333].double()
    recon = dictionary(gaussian[:333]).detach().double()
    assert found["fvu"].value == pytest.approx(
        float((x - recon).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-6
    )
    assert found["cosine"].value == pytest.approx(float(torch.cosine_similarity(x, recon).mean()), rel=1e-6)
    ratio = (recon.norm(dim=1) / x.norm(dim=1))[x.norm(dim=1) > 0].mean()
    assert found["norm_ratio"].value == pytest.approx(float(ratio), rel=1e-6)
    assert found["fvu"].n == 333


def test_the_curve_over_positions_averages_to_the_whole(gaussian):
    record = figures(TopK(TopK.configure(n_features=12, k=2), 5), gaussian)["fvu"]
    tokens, fvu = (np.array(record.series[name]) for name in ("tokens", "fvu"))
    assert record.series["first_position"] == [0, 1, 2, 4, 8]
    assert tokens.sum() == 1000
    assert (tokens * fvu).sum() / 1000 == pytest.approx(record.value, rel=1e-9)


def test_rows_of_no_documents_have_no_curve_over_positions(tmp_path):
    """A bare file's `where` counts its rows; with documents of its own it has positions."""
    rows = torch.randn(2000, 5)
    np.save(tmp_path / "bare.npy", rows.numpy())
    where = torch.stack([torch.arange(2000) // 100, torch.arange(2000) % 100], 1)
    save_file({"x": rows, "where": where}, tmp_path / "placed.safetensors")
    dictionary = TopK(TopK.configure(n_features=12, k=2), 5)
    for name, curve in (("bare.npy", None), ("placed.safetensors", [0, 1, 2, 4, 8, 16, 32, 64])):
        source = RowsSource(tmp_path / name, split="heldout")
        found = by_name(Reconstruction(n_tokens=200).run(Subject(dictionary, source.spec, source)))
        assert (found["fvu"].series or {}).get("first_position") == curve, name


@pytest.mark.parametrize("listed", [True, False])
def test_a_split_of_one_document(listed):
    subject = host_subject(n=1, listed=listed)
    assert by_name(Reconstruction(n_tokens=200).run(subject))["fvu"].series


def test_positions_are_those_in_the_window():
    """Which begins with BOS: each has one token of the document less."""
    subject = host_subject()
    position_N = torch.cat([rows.where_N2[:, 1] for _, rows in subject.heldout.batches()])
    assert position_N.max() > 2 * CONTEXT
    record = by_name(Reconstruction().run(subject))["fvu"]
    assert record.series["tokens"] == torch.bincount(octave(position_N % (CONTEXT - 1))).tolist()


def test_octaves():
    assert octave(torch.tensor([0, 1, 2, 3, 4, 7, 8, 2**40])).tolist() == [0, 1, 2, 2, 3, 3, 4, 23]


def test_constant_rows_have_no_fvu():
    found = figures(scaled_copy(5, 0.5), _nearly_constant(), n_tokens=10)
    assert found["fvu"].value is None and found["fvu"].spread is None
    assert found["cosine"].value == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_what_rounding_leaves_of_constant_rows_is_no_variance(seed):
    subject = row_subject(scaled_copy(5, 0.5), _nearly_constant())
    level = 100 * torch.randn(5, generator=torch.Generator().manual_seed(seed))
    subject.heldout.x_ND = level.expand(20, 5).contiguous()
    found = by_name([*Reconstruction().run(subject), *Sparsity().run(subject)])
    for name in ("fvu", "explained_variance", "outlier_severity"):
        assert found[name].value is None and found[name].spread is None


def _nearly_constant():
    x = torch.ones(20, 5)
    x[-1] = 2  # calibration needs two different rows
    return x


def test_no_rows_is_an_error(gaussian):
    subject = row_subject(scaled_copy(5, 1.0), gaussian)
    subject.heldout.x_ND = gaussian[:0]
    with pytest.raises(DataError, match="no rows"):
        Reconstruction().run(subject)
