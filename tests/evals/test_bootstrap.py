"""The interval is that of a mean of independent documents, and memory is bounded."""

import numpy as np
import pytest
import torch
from small_hosts import by_name, row_subject

from saetools.dictionaries.topk import TopK
from saetools.evals.base import make_evaluation
from saetools.evals.bootstrap import (
    LEAST_ITEMS,
    MAX_BYTES,
    RESAMPLED_BYTES,
    DocumentSums,
    bootstrap_interval,
    correlation_interval,
    mean_interval,
    mean_ratio,
    median_interval,
    ratio_sums,
    standard_error,
)

SETTINGS = {"geometry": {"pair_share": 1.0}, "sparsity": {"dense_above": 0.3}}
INTERVALS = {
    "reconstruction": ("fvu", "cosine"),
    "sparsity": ("l0_mean", "dense_fraction", "outlier_severity"),
    "geometry": ("co_firing_cosine", "epsilon_lbo"),
}


def mean(totals):
    return totals[:, 1] / totals[:, 0]


def test_width_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(np.stack([np.ones(400), values], 1), mean, seed=0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)


def test_documents_not_tokens_are_resampled():
    """Copies of a row within its document must not narrow the interval."""
    values = np.random.default_rng(0).normal(size=50)

    def interval(copies):
        sums = DocumentSums(2)
        rows = torch.from_numpy(np.repeat(np.stack([np.ones(50), values], 1), copies, 0))
        sums.add(torch.arange(50).repeat_interleave(copies), rows)
        return sums.interval(mean, 0)

    assert interval(20) == pytest.approx(interval(1), rel=1e-12)
    of_documents = bootstrap_interval(np.stack([np.ones(50), values], 1), mean, 0)
    assert interval(1) == pytest.approx(of_documents, rel=1e-12), "groups without a document are not drawn"


def test_a_million_features_do_not_make_documents_few():
    """A sum of each took all of the room, so that seven groups were left and said to be seven documents."""
    sums = DocumentSums(2**20 + 1)
    documents = torch.arange(40)
    sums.add_counts(documents, documents, documents)
    low, high = sums.interval(lambda totals: totals[:, :40].sum(1), 0, 10)
    assert sums.too_few() is None and low < 40 < high


def test_many_documents_share_groups_and_keep_the_totals():
    sums = DocumentSums(2)
    documents = torch.randint(0, 10**9, (20_000,))
    rows = torch.rand(20_000, 2, dtype=torch.float64)
    for part in range(0, 20_000, 1000):
        sums.add(documents[part : part + 1000], rows[part : part + 1000])
    assert sums.n_rows == 20_000 and sums.n_groups == 4096 and (sums.n_rows_G > 0).sum() > 4000
    np.testing.assert_allclose(sums.totals(), rows.sum(0).numpy(), rtol=1e-12)
    assert DocumentSums(10_000).sums_GC.numel() * 8 <= MAX_BYTES


def test_counts_are_rows_of_ones():
    documents, rows = torch.tensor([3, 3, 8]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    dense, sparse = DocumentSums(3), DocumentSums(3)
    dense.add(documents, rows.double())
    sparse.add_counts(documents, *rows.nonzero().T)
    assert torch.equal(sparse.sums_GC, dense.sums_GC) and torch.equal(sparse.n_rows_G, dense.n_rows_G)


def test_many_columns_are_resampled_a_few_at_a_time():
    """Chunks of resamples draw what one chunk would."""
    sums = np.random.default_rng(0).random((30, 2))
    wide = np.concatenate([sums, np.zeros((30, RESAMPLED_BYTES // 64))], 1)
    assert bootstrap_interval(wide, mean, 1, 20) == pytest.approx(bootstrap_interval(sums, mean, 1, 20), rel=1e-12)


def test_undefined_without_finite_values():
    assert bootstrap_interval(np.zeros((10, 2)), mean, 0) is None
    rarely = lambda totals: np.where(totals.min(1) > 0, 1.0, np.nan)  # noqa: E731 - in 0.2 % of resamples
    assert bootstrap_interval(np.eye(8), rarely, 0) is None


def test_few_documents_have_no_interval_and_the_note_says_so(gaussian):
    """That of two documents would hold the truth in half of the cases, of whatever figure."""
    for n, has in ((LEAST_ITEMS - 1, False), (LEAST_ITEMS, True)):
        assert (bootstrap_interval(np.random.default_rng(0).random((n, 2)), mean, 0) is not None) == has
        for name in ("reconstruction", "sparsity", "geometry"):
            subject = row_subject(TopK(TopK.configure(n_features=8, k=3), 5), gaussian, per_document=50)
            found = by_name(make_evaluation(name, n_tokens=50 * n, **SETTINGS.get(name, {})).run(subject))
            for figure in INTERVALS[name]:
                note = f"{n} documents (or blocks of rows) are too few for an interval"
                assert (found[figure].spread is not None) == has, figure
                assert (note in (found[figure].note or "")) != has, figure


def test_the_seed_decides():
    sums = np.random.default_rng(0).random((30, 2))
    assert bootstrap_interval(sums, mean, 1) == bootstrap_interval(sums, mean, 1)
    assert bootstrap_interval(sums, mean, 1) != bootstrap_interval(sums, mean, 2)


def test_the_mean_of_items_leaves_out_what_is_undefined():
    values = np.random.default_rng(0).normal(5, 1, 100)
    low, high = mean_interval(values, 0)
    assert low < values.mean() < high and high - low == pytest.approx(4 * 0.1, rel=0.2)
    assert mean_interval([*values, float("nan")], 0) == (low, high)
    assert mean_interval([*values[: LEAST_ITEMS - 1], float("nan")], 0) is None


def test_an_interval_of_the_mean_holds_it_nearly_as_often_as_it_says():
    numbers = np.random.default_rng(0)
    intervals = [mean_interval(numbers.normal(size=LEAST_ITEMS), seed) for seed in range(300)]
    assert np.mean([low <= 0 <= high for low, high in intervals]) > 0.85


def test_the_standard_error_is_over_documents():
    values = np.random.default_rng(0).normal(size=50)
    assert standard_error(values, np.arange(50)) == pytest.approx(values.std(ddof=1) / 50**0.5)
    assert standard_error(np.repeat(values, 20), np.arange(1000) // 20) == pytest.approx(values.std(ddof=1) / 50**0.5)
    assert standard_error(values, np.zeros(50)) == float("inf")


def test_the_mean_of_ratios_weighs_items_alike():
    """One of two items has ten times the rows; they share documents, which are drawn for both."""
    numbers = np.random.default_rng(0)
    items = [(numbers.integers(0, 30, n), numbers.random(n) + 1, numbers.random(n)) for n in (50, 500)]
    sums = ratio_sums(items)
    assert sums.value(mean_ratio) == pytest.approx(np.mean([above.sum() / below.sum() for _, below, above in items]))
    low, high = sums.interval(mean_ratio, 0)
    assert low < sums.value(mean_ratio) < high


def test_the_interval_of_a_median_is_over_groups():
    """100 groups of 30 equal items: as wide as that of a median of 100, and no narrower with more items each."""
    numbers = np.random.default_rng(0)
    of_group = numbers.normal(size=100)
    values, groups = np.repeat(of_group, 30), np.repeat(np.arange(100), 30)
    low, high = median_interval(values, groups, 0)
    drawn = np.median(numbers.choice(of_group, (4000, 100)), axis=1)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.08)
    order = numbers.permutation(3000)
    assert median_interval(values[order], groups[order], 0) == (low, high)
    assert median_interval(np.r_[values, np.nan], np.r_[groups, 7], 0) == (low, high)
    assert median_interval(np.arange(10.0), np.arange(10), 0) == (1, 7), "of two in the middle it is the lower"
    few = 30 * (LEAST_ITEMS - 1)
    assert median_interval(values[: few + 30], groups[: few + 30], 0) is not None
    assert median_interval(values[:few], groups[:few], 0) is None and median_interval(values[:0], groups[:0], 0) is None


def test_the_interval_of_a_correlation():
    """By Fisher's transformation tanh(atanh r +- 1.96 / sqrt(n - 3))."""
    numbers = np.random.default_rng(0)
    x = numbers.normal(size=400)
    pairs = np.stack([1e3 + x, x + numbers.normal(size=400)], 1)
    r = np.corrcoef(pairs.T)[0, 1]
    expected = tuple(np.tanh(np.arctanh(r) + sign * 1.96 / 397**0.5) for sign in (-1, 1))
    assert correlation_interval(pairs, 0) == pytest.approx(expected, abs=0.02)
    assert correlation_interval(np.stack([x, 2 * x], 1), 0) == pytest.approx((1, 1))
