"""Co-firing counts against dense matrix products."""

import numpy as np
import pytest

from saetools.features import coactivation
from saetools.features.coactivation import MIN_TOGETHER, Coactivation
from saetools.features.sampling import uniform

N_FEATURES = 15


def codes(n_rows: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    fires_NF = random.random((n_rows, N_FEATURES)) < random.uniform(0.01, 0.5, N_FEATURES)
    fires_NF[:, 3] = fires_NF[:, 4]
    fires_NF[:, 7] = False
    return np.where(fires_NF, random.normal(1, 1, fires_NF.shape).astype(np.float32), 0)


def feed(counter: Coactivation, code_NF: np.ndarray, batch: int = 50) -> None:
    for start in range(0, len(code_NF), batch):
        piece = code_NF[start : start + batch]
        rows, features = np.nonzero(piece)
        counter.add(rows, features, piece[rows, features], len(piece))


@pytest.mark.parametrize("block_bytes", [200, 1000, 1 << 20])
def test_equals_dense_counts(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coactivation, "BLOCK_BYTES", block_bytes)
    code_NF = codes(400)
    fires_NF = code_NF != 0
    counter = Coactivation(N_FEATURES, 1000, seed=0)
    feed(counter, code_NF)
    n_tokens, found = counter.neighbours(5)
    assert n_tokens == 400
    together = fires_NF.astype(np.int64).T @ fires_NF
    count = fires_NF.sum(0)
    with np.errstate(invalid="ignore"):  # feature 7 never fires
        correlation = np.corrcoef(code_NF.T.astype(np.float64))
    for a in range(N_FEATURES):
        others = [b for b in range(N_FEATURES) if b != a]
        jaccard = {b: together[a, b] / (count[a] + count[b] - together[a, b]) for b in others if together[a, b]}
        pmi = {b: np.log(400 * together[a, b] / (count[a] * count[b])) for b in others if together[a, b] >= 5}
        pearson = {b: correlation[a, b] for b in pmi}
        for name, expected in (("jaccard", jaccard), ("pmi", pmi), ("pearson", pearson)):
            value, index = found[name][0][a], found[name][1][a]
            best = sorted(expected, key=lambda b: (-expected[b], b))[:5]
            listed = ~np.isnan(value)
            assert index[listed].tolist() == best
            np.testing.assert_allclose(value[listed], [expected[b] for b in best])
    assert found["jaccard"][0][3][0] == 1 and found["jaccard"][1][3][0] == 4


@pytest.mark.parametrize("value", [0.1, 0.7, 1.3, 3.0])
@pytest.mark.parametrize("n_rows", [7, 33, 1000])
def test_what_never_varies_is_correlated_with_nothing(value: float, n_rows: int) -> None:
    """Its scatter is rounding: of either sign, and correlations beyond 1 came of it."""
    code_NF = np.abs(codes(n_rows))
    code_NF[:, 0] = value
    counter = Coactivation(code_NF.shape[1], 10_000, 0)
    feed(counter, code_NF)
    with np.errstate(all="raise"):
        _, found = counter.neighbours()
    pearson_FJ, feature_FJ = found["pearson"]
    assert np.isnan(pearson_FJ[0]).all() and not (feature_FJ[1:][np.isfinite(pearson_FJ[1:])] == 0).any()
    assert np.nanmax(np.abs(pearson_FJ), initial=0) <= 1 + 1e-12


def test_beyond_capacity_it_is_the_same_seeded_sample_for_any_batching() -> None:
    code_NF = codes(900)
    results = []
    for batch in (50, 130):
        counter = Coactivation(N_FEATURES, 300, seed=1)
        feed(counter, code_NF, batch)
        results.append(counter.neighbours(5))
    assert results[0][0] == 300
    drawn, counter = np.argsort(-uniform(1, 2, np.arange(900)))[:300], Coactivation(N_FEATURES, 300, seed=0)
    feed(counter, code_NF[np.sort(drawn)])
    results.append(counter.neighbours(5))
    for name in ("jaccard", "pmi", "pearson"):
        for _, other in results[1:]:
            np.testing.assert_array_equal(results[0][1][name][0], other[name][0])
            np.testing.assert_array_equal(results[0][1][name][1], other[name][1])


@pytest.mark.slow
def test_a_hundred_thousand_tokens_twenty_neighbours() -> None:
    random, n_features, n_rows = np.random.default_rng(2), 150, 100_000
    fires_NF = random.random((n_rows, n_features), np.float32) < random.uniform(0.002, 0.2, n_features)
    fires_NF[:, 1] |= fires_NF[:, 0] & (random.random(n_rows) < 0.7)
    code_NF = np.where(fires_NF, random.normal(1, 1, fires_NF.shape), 0).astype(np.float32)
    fires_NF = code_NF != 0
    counter = Coactivation(n_features, n_rows, seed=0)
    feed(counter, code_NF, 5000)
    n_tokens, found = counter.neighbours()
    assert n_tokens == n_rows
    together = fires_NF.astype(np.float64).T @ fires_NF
    count = fires_NF.sum(0)
    with np.errstate(divide="ignore"):
        expected = {
            "jaccard": together / (count[:, None] + count - together),
            "pmi": np.where(together >= MIN_TOGETHER, np.log(n_rows * together / np.outer(count, count)), -np.inf),
            "pearson": np.where(together >= MIN_TOGETHER, np.corrcoef(code_NF.T.astype(np.float64)), -np.inf),
        }
    for name, score_FF in expected.items():
        np.fill_diagonal(score_FF, -np.inf)
        order_FJ = np.argsort(-score_FF, axis=1, kind="stable")[:, :20]
        value_FJ, index_FJ = found[name]
        assert value_FJ.shape == (n_features, 20)
        np.testing.assert_allclose(value_FJ, np.take_along_axis(score_FF, order_FJ, 1), rtol=1e-9)
        np.testing.assert_array_equal(index_FJ, order_FJ)
