"""The streaming pass against brute force over the whole toy at once."""

import numpy as np
import pytest
import torch
from toy import WORDS, SignedDictionary, ToyHost, ToyPlan, ToySource

from saetools.activations.base import ActivationBatch
from saetools.dictionaries.gradient import Gradient
from saetools.errors import DataError, MismatchError
from saetools.features.collect import Collected, CollectSettings, collect, row_texts
from saetools.features.contexts import _grams, band_of, peak_quantiles, window_numbers
from saetools.features.firings import Firings
from saetools.features.records import bin_edges
from saetools.features.sampling import uniform
from saetools.functional.statistics import firing_counts_F
from saetools.text.base import TokenBatch

SETTINGS = CollectSettings(n_top=4, n_random=6, n_uniform=3, before=5, after=3, coactivation_tokens=10_000, seed=3)


class Everything:
    """Dense codes on the plan's grid, from which each statistic is computed the obvious way."""

    def __init__(self, dictionary: SignedDictionary, plan: ToyPlan, source: ToySource) -> None:
        self.plan = plan
        n_windows = plan.host_batch * len(plan.made)
        self.code_WTF = np.zeros((n_windows, plan.width, dictionary.config.n_features), np.float32)
        rows = []
        for tokens, batch in zip(plan.made, source.rows, strict=True):
            code_NF = dictionary.encode(batch.x_ND).to_dense().numpy()
            rows.append(code_NF)
            for (document, position), code_F in zip(batch.where_N2.tolist(), code_NF, strict=True):
                row = int(np.flatnonzero(tokens.document_B == document)[0])
                column = int(np.flatnonzero(tokens.position_BT[row] == position)[0])
                self.code_WTF[tokens.number * plan.host_batch + row, column] = code_F
        self.code_NF = np.concatenate(rows)
        self.ids_WT = np.concatenate([tokens.ids_BT for tokens in plan.made])
        self.position_WT = np.concatenate([tokens.position_BT for tokens in plan.made])

    def contexts(self, feature: int) -> list[tuple[float, int, int]]:
        """(peak value, window, column) of every window in which the feature fires."""
        found = []
        for window, values_T in enumerate(self.code_WTF[:, :, feature]):
            column = int(np.argmax(np.abs(values_T)))
            if values_T[column]:
                found.append((float(values_T[column]), window, column))
        return found

    def gram(self, window: int, column: int) -> tuple[int, ...]:
        ids = self.ids_WT[window]
        return tuple(int(ids[at]) if 0 <= at < len(ids) else -1 for at in range(column - 4, column + 4))

    def shown(self, window: int, column: int, feature: int) -> tuple[str, list[float]]:
        real = [
            t for t in range(column - 5, column + 4) if 0 <= t < self.plan.width and self.position_WT[window, t] >= 0
        ]
        text = "".join(WORDS[self.ids_WT[window, t]] for t in real)
        return text, [float(self.code_WTF[window, t, feature]) for t in real]


@pytest.fixture(scope="module")
def toy() -> tuple[Collected, Everything]:
    plan = ToyPlan(n_batches=9)
    source, dictionary = ToySource(plan), SignedDictionary()
    return collect(dictionary, source, plan, SETTINGS), Everything(dictionary, plan, source)


def test_statistics_equal_brute_force(toy: tuple[Collected, Everything]) -> None:
    collected, everything = toy
    code_NF = everything.code_NF.astype(np.float64)
    moments = collected.moments
    fires_NF = code_NF != 0
    assert moments.n_rows == len(code_NF)
    assert collected.coactivation is not None and collected.coactivation.seed == SETTINGS.seed
    np.testing.assert_array_equal(moments.count_F, fires_NF.sum(0))
    np.testing.assert_allclose(moments.density_F(), fires_NF.mean(0))
    np.testing.assert_allclose(moments.mean_square_F(), (code_NF**2).mean(0), rtol=1e-12)
    assert (code_NF < 0).any() and (code_NF > 0).any(), "the toy is signed"
    skewness, kurtosis = moments.skewness_kurtosis_F()
    for feature in range(code_NF.shape[1]):
        values = code_NF[fires_NF[:, feature], feature]
        if not len(values):
            assert np.isnan(moments.mean_F()[feature]) and moments.max_F[feature] == 0
            continue
        assert moments.mean_F()[feature] == pytest.approx(values.mean(), rel=1e-12)
        assert abs(moments.max_F[feature]) == np.abs(values).max() and moments.max_F[feature] in values
        centred = values - values.mean()
        if centred.std() > 0:
            assert skewness[feature] == pytest.approx((centred**3).mean() / (centred**2).mean() ** 1.5, abs=1e-8)
            assert kurtosis[feature] == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2 - 3, abs=1e-8)


def test_histograms_equal_brute_force(toy: tuple[Collected, Everything]) -> None:
    collected, everything = toy
    edges = bin_edges()
    assert collected.contexts is not None
    for feature in range(everything.code_NF.shape[1]):
        assert collected.contexts.peak_counts_FB[feature].sum() == len(everything.contexts(feature))
        found = collected.moments.histogram(feature)
        values = everything.code_NF[:, feature]
        for sign, counts in ((1, found.positive), (-1, found.negative)):
            expected, _ = np.histogram(sign * values[sign * values > 0], edges)
            own = np.zeros_like(expected)
            own[found.first : found.first + len(counts)] = counts
            np.testing.assert_array_equal(own, expected)


def examples_of(toy: tuple[Collected, Everything], feature: int) -> list:
    collected, _ = toy
    assert collected.contexts is not None
    return collected.contexts.examples(feature, collected.window_texts(ToyHost().token_texts))


def test_top_examples_equal_brute_force(toy: tuple[Collected, Everything]) -> None:
    _, everything = toy
    n_repeated = 0
    for feature in range(12):
        ranked = sorted(everything.contexts(feature), key=lambda context: (-abs(context[0]), context[1]))
        best: dict[tuple[int, ...], tuple[float, int, int]] = {}
        for context in ranked:
            best.setdefault(everything.gram(*context[1:]), context)
        n_repeated += len(ranked) - len(best)
        expected = list(best.values())[: SETTINGS.n_top]
        found = [example for example in examples_of(toy, feature) if example.band == "top"]
        assert [example.value for example in found] == [value for value, _, _ in expected]
        for example, (_, window, column) in zip(found, expected, strict=True):
            text, values = everything.shown(window, column, feature)
            assert "".join(example.tokens) == text and list(example.values) == values
            assert example.document == f"doc{window}.py"
            assert example.position + example.peak == everything.position_WT[window, column]
    assert n_repeated > 50


def test_windows_of_one_document_have_numbers_of_their_own() -> None:
    tokens = ToyPlan(n_batches=1).made[0]
    tokens.position_BT[1][tokens.keep_BT[1]] += 100
    again = TokenBatch(5, tokens.ids_BT, tokens.keep_BT, np.array([0, 0, 2, 3]), tokens.position_BT)
    assert window_numbers(again).tolist() == [0, 100, 2 << 32, 3 << 32]


def test_beside_a_window_there_is_nothing() -> None:
    two = np.array([0, 1])
    firings = Firings(np.zeros(2, np.int64), two, np.array([4, 0]), np.array([1.0, 2.0], np.float32), 10, 5)
    assert firings.values_at(np.array(0), two[:, None], np.array([-1, 0, 4, 5])).tolist() == [
        [0, 0, 1, 0],
        [0, 2, 0, 0],
    ]


def test_contexts_are_told_apart_by_the_eight_tokens_around_their_peaks() -> None:
    for at in range(20):
        ids_BT = np.tile(np.arange(20), (2, 1))
        ids_BT[1, at] = 99
        one, other = _grams(ids_BT, np.array([0, 1]), np.array([10, 10]))
        assert (one != other) == (6 <= at < 14)


def test_random_examples_are_the_seeded_sample_in_its_bands(toy: tuple[Collected, Everything]) -> None:
    collected, everything = toy
    assert collected.contexts is not None
    n_checked = 0
    for feature in range(12):
        contexts = everything.contexts(feature)
        priority = {c: float(uniform(SETTINGS.seed, np.array([feature]), np.array([c[1] << 32]))[0]) for c in contexts}
        sample = sorted(contexts, key=lambda c: -priority[c])[: SETTINGS.n_random]
        found = [example for example in examples_of(toy, feature) if example.band.startswith("q")]
        assert sorted(e.value for e in found) == sorted(value for value, _, _ in sample)
        edges = [0, *peak_quantiles(collected.contexts.peak_counts_FB[feature]), np.inf]
        for example in found:
            number = int(example.band[1])
            assert edges[number - 1] <= abs(example.value) < edges[number]
            assert max(map(abs, example.values)) == abs(example.value), "no shown value is beyond the band"
            n_checked += 1
    assert n_checked > 40


def test_uniform_examples_are_the_same_places_for_all(toy: tuple[Collected, Everything]) -> None:
    _, everything = toy
    window, column = np.nonzero(everything.position_WT >= 0)
    order = np.argsort(-uniform(SETTINGS.seed, 1, window << 32, column))[: SETTINGS.n_uniform]
    expected = [(int(window[i]), int(column[i])) for i in order]
    for feature in range(12):
        found = [example for example in examples_of(toy, feature) if example.band == "uniform"]
        shown = [everything.shown(*place, feature) for place in expected]
        assert [("".join(e.tokens), list(e.values)) for e in found] == shown


def test_quantiles_split_the_peaks_evenly() -> None:
    from saetools.features.records import N_BINS, bin_of

    values = np.random.default_rng(0).lognormal(size=50_000)
    counts = np.bincount(bin_of(values), minlength=N_BINS)
    edges = peak_quantiles(counts)
    shares = np.unique([band_of(value, edges) for value in values], return_counts=True)[1] / len(values)
    np.testing.assert_allclose(shares, 0.2, atol=0.01)
    assert np.isinf(peak_quantiles(np.zeros(N_BINS, np.uint32))).all()
    assert [band_of(value, np.array([1.0, 2, 3, 4])) for value in (0.5, 2.0, -4.0)] == ["q1", "q3", "q5"]


def test_whole_windows_are_read() -> None:
    plan = ToyPlan(n_batches=6)
    source = ToySource(plan)
    n_first = len(source.rows[0])
    in_second = int((source.rows[1].where_N2[:, 0] == source.rows[1].where_N2[0, 0]).sum())
    for n_tokens, n_read in ((n_first - 1, n_first), (n_first, n_first), (n_first + 1, n_first + in_second)):
        limited = SETTINGS.model_copy(update={"n_tokens": n_tokens})
        collected = collect(SignedDictionary(), source, plan, limited)
        assert collected.moments.n_rows == n_read
    bare = collect(SignedDictionary(), source, None, limited)
    assert bare.moments.n_rows == n_first + 1


def test_batches_and_their_order_change_nothing() -> None:
    """The same windows one by one and backwards give the same examples, ties and draws included."""
    plan = ToyPlan(n_batches=30)
    source = ToySource(plan)
    whole = collect(SignedDictionary(), source, plan, SETTINGS)
    single, rows = ToyPlan(n_batches=0, host_batch=1), []
    for tokens, batch in reversed(list(zip(plan.made, source.rows, strict=True))):
        for row in reversed(range(plan.host_batch)):
            parts = (tokens.ids_BT, tokens.keep_BT, tokens.document_B, tokens.position_BT)
            single.made.append(TokenBatch(len(single.made), *(part[[row]] for part in parts)))
            inside = batch.where_N2[:, 0] == int(tokens.document_B[row])
            rows.append(ActivationBatch(batch.x_ND[inside], batch.where_N2[inside]))
    backwards = ToySource(plan)
    backwards.rows = rows
    again = collect(SignedDictionary(), backwards, single, SETTINGS)
    texts, other = (each.window_texts(ToyHost().token_texts) for each in (whole, again))
    for feature in range(12):
        assert again.contexts.examples(feature, other) == whole.contexts.examples(feature, texts)


@pytest.mark.parametrize("none", ["n_top", "n_random", "n_uniform"])
def test_any_of_the_samples_may_be_empty(none: str) -> None:
    plan = ToyPlan()
    collected = collect(SignedDictionary(), ToySource(plan), plan, SETTINGS.model_copy(update={none: 0}))
    assert collected.contexts is not None
    bands = {e.band[0] for f in range(12) for e in examples_of((collected, None), f)}  # type: ignore[arg-type]
    assert bands == {"t", "q", "u"} - {none[2].replace("r", "q")}


def test_examples_of_rows_without_tokens_are_the_rows() -> None:
    plan = ToyPlan()
    dictionary, source = SignedDictionary(), ToySource(plan)
    bare, full = collect(dictionary, source, None, SETTINGS), collect(dictionary, source, plan, SETTINGS)
    np.testing.assert_array_equal(bare.moments.histogram_SFB, full.moments.histogram_SFB)
    code_NF = torch.cat([dictionary.encode(rows.x_ND).to_dense() for rows in source.rows])
    where_N2 = torch.cat([rows.where_N2 for rows in source.rows])
    texts = bare.window_texts(row_texts)
    for feature in range(12):
        top = [example for example in bare.contexts.examples(feature, texts) if example.band == "top"]
        fires = int((code_NF[:, feature] != 0).sum())
        order = code_NF[:, feature].abs().argsort(descending=True)[: min(SETTINGS.n_top, fires)]
        assert [abs(e.value) for e in top] == pytest.approx(code_NF[order, feature].abs().tolist())
        places = [(source.document_id(document), (f"row {position}",)) for document, position in where_N2.tolist()]
        values = dict(zip(places, code_NF[:, feature].tolist(), strict=True))
        assert all(values[example.document, example.tokens] == pytest.approx(example.value) for example in top)
        assert int(bare.contexts.peak_counts_FB[feature].sum()) == fires


def test_fields_of_the_rows_reach_the_dictionary() -> None:
    source = ToySource(ToyPlan(n_batches=1))
    x_ND, where_N2 = source.rows[0].x_ND, source.rows[0].where_N2
    fields = {"grad": torch.sin(3 * x_ND)}
    source.rows = [ActivationBatch(x_ND, where_N2, fields)]
    dictionary = Gradient(Gradient.configure(n_features=20, k=3, beta=5.0), x_ND.shape[1])
    counts_F = collect(dictionary, source, None, SETTINGS).moments.count_F
    with_fields, without = (firing_counts_F(dictionary.encode(x_ND, f)).numpy() for f in (fields, {}))
    assert (counts_F == with_fields).all() and (counts_F != without).any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_codes_that_are_no_numbers_are_refused(value: float) -> None:
    """Of weights that diverged: SQLite took the nan for nothing, and refused it by a column's name."""
    plan, dictionary = ToyPlan(), SignedDictionary()
    dictionary.W_FD[3] = value
    with pytest.raises(DataError, match="code of feature 3 is not finite"):
        collect(dictionary, ToySource(plan), plan, CollectSettings())


def test_rows_of_another_plan_are_refused() -> None:
    plan = ToyPlan()
    with pytest.raises(MismatchError, match="another plan"):
        collect(SignedDictionary(), ToySource(ToyPlan(seed=5)), plan, SETTINGS)
    with pytest.raises(MismatchError, match="ends before"):
        collect(SignedDictionary(), ToySource(plan), ToyPlan(n_batches=2), SETTINGS)
    empty = ToySource(plan)
    empty.rows = []
    with pytest.raises(DataError, match="no rows"):
        collect(SignedDictionary(), empty, plan, SETTINGS)
