"""Selection over the batch and per feature against one stable sort."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetools.kernels.encode_topk import Precision
from saetools.kernels.global_topk import cases, global_topk
from saetools.kernels.per_feature_topm import cases as feature_cases
from saetools.kernels.per_feature_topm import per_feature_topm


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_global_cases(impl: str) -> None:
    cases.verify(impl)


def test_global_cases_screened() -> None:
    cases.verify("numba", "bf16-screen")


@pytest.mark.parametrize("guess", [0.0, 2.0, 50.0])
def test_screened_is_exact_on_rows_that_are_not_whole_numbers(guess: float) -> None:
    g = torch.Generator().manual_seed(0)
    x, W = torch.randn(1500, 40, generator=g), torch.randn(300, 40, generator=g) / 6
    b = torch.randn(300, generator=g)
    expected, threshold = global_topk(x, W, b, 9000, impl="numba")
    got, reached = global_topk(x, W, b, 9000, impl="numba", precision="bf16-screen", guess=guess)
    assert torch.equal(got.offsets_N1, expected.offsets_N1) and torch.equal(got.indices_M, expected.indices_M)
    torch.testing.assert_close(got.values_M, expected.values_M, rtol=1e-5, atol=1e-5)
    assert reached == pytest.approx(threshold, rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, -2.0, -50.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16-screen"])
@pytest.mark.parametrize(("n", "f", "k"), [(333, 50, 4), (1100, 40, 5), (2500, 64, 40), (1500, 300, 6), (7, 17, 17)])
def test_a_guess_decides_no_bit(n: int, f: int, k: int, precision: Precision, shift: float) -> None:
    """A resumed run begins without the guess that a straight one has: also where the first rows give no bound."""
    g = torch.Generator().manual_seed(n)
    x, W = torch.randn(n, 16, generator=g), torch.randn(f, 16, generator=g) / 4
    b = torch.randn(f, generator=g) / 10 + shift
    x[: n // 3] /= 10  # the first rows reach less
    expected, threshold = global_topk(x, W, b, k * n, impl="numba")
    without, reached = global_topk(x, W, b, k * n, impl="numba", precision=precision)
    assert torch.equal(without.offsets_N1, expected.offsets_N1) and torch.equal(without.indices_M, expected.indices_M)
    torch.testing.assert_close(without.values_M, expected.values_M, rtol=1e-5, atol=1e-5)
    assert reached == pytest.approx(threshold, rel=1e-4, abs=1e-6) and (without.values_M > 0).all()
    for guess in (0.01, threshold / 2, threshold * 0.97, threshold, threshold * 1.1, 1e9, math.inf, math.nan):
        got, also = global_topk(x, W, b, k * n, impl="numba", precision=precision, guess=guess)
        cases.assert_same(f"guess {guess}", got, without)
        assert torch.equal(got.values_M, without.values_M) and also == reached


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_per_feature_cases(impl: str) -> None:
    feature_cases.verify(impl)


def test_the_gate_sees_a_wrong_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_ties(x, W, b, n, **arguments):
        code, threshold = global_topk(x.flip(0), W, b, n, **arguments)
        return (code, threshold) if arguments["impl"] == "reference" else global_topk(x, W, b, n, **arguments)

    monkeypatch.setattr(cases, "global_topk", reversed_ties)
    with pytest.raises(AssertionError, match="differ from plain"):
        cases.verify("numba")


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_nan_is_never_lost(impl: str) -> None:
    case = next(cases.cases())
    W = case.W_FD.clone()
    W[77, 3] = torch.nan
    for precision in ("fp32", "bf16-screen"):
        code, _ = global_topk(case.x_ND, W, case.b_F, 100, impl=impl, precision=precision)
        assert code.values_M.isnan().any()
    code, _ = per_feature_topm(case.x_ND, W, case.b_F, torch.full((200,), 3), impl=impl)
    assert code.values_M.isnan().any()


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
@pytest.mark.parametrize("n_bad", [1, 30])
def test_more_nans_than_places(impl: str, n_bad: int) -> None:
    """Slots were once counted backwards then, and written outside their arrays."""
    case = next(cases.cases())
    x = case.x_ND.clone()
    x[3 : 3 + n_bad] = torch.nan
    for precision in ("fp32", "bf16-screen"):
        code, threshold = global_topk(x, case.W_FD, case.b_F, 100, impl=impl, precision=precision)
        assert (code.offsets_N1.diff() >= 0).all() and code.offsets_N1[-1] == len(code.values_M) == 100
        assert code.values_M.isnan().all() and math.isnan(threshold)


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_the_least_score_kept_is_a_number_where_one_is(impl: str) -> None:
    case = next(cases.cases())
    x = case.x_ND.clone()
    x[3] = torch.nan
    code, threshold = global_topk(x, case.W_FD, case.b_F, 300, impl=impl)
    assert int(code.values_M.isnan().sum()) == 200
    assert threshold == float(code.values_M[~code.values_M.isnan()].min())


def test_results_do_not_depend_on_threads() -> None:
    case = next(cases.cases())
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        results.append(global_topk(case.x_ND, case.W_FD, case.b_F, 300, impl="numba")[0])
    cases.assert_same("threads", *results)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 40), f=st.integers(1, 90), share=st.floats(0, 1), guess=st.floats(0, 20))
def test_any_shape(n: int, f: int, share: float, guess: float) -> None:
    g = torch.Generator().manual_seed(n + f)
    x, W, b = (torch.randint(-3, 4, shape, generator=g).float() for shape in ((n, 4), (f, 4), (f,)))
    n_kept = round(share * n * f)
    for precision in ("fp32", "bf16-screen"):
        got, _ = global_topk(x, W, b, n_kept, guess=guess, precision=precision, impl="numba")
        cases.assert_same("any", got, global_topk(x, W, b, n_kept, impl="reference")[0])
    budget = torch.randint(0, n + 1, (f,), generator=g)
    cases.assert_same("any", *(per_feature_topm(x, W, b, budget, impl=impl)[0] for impl in ("numba", "reference")))


def test_a_range_of_features_gives_global_indices() -> None:
    case = next(cases.cases())
    for impl in ("reference", "torch", "numba"):
        code, _ = global_topk(case.x_ND, case.W_FD[50:], case.b_F[50:], 100, first_feature=50, impl=impl)
        assert int(code.indices_M.min()) >= 50
        pre = case.x_ND @ case.W_FD.T + case.b_F
        assert torch.equal(pre[code.rows(), code.indices_M.long()], code.values_M)


def test_bad_arguments() -> None:
    x, W, b = torch.randn(2, 3), torch.randn(5, 3), torch.zeros(5)
    with pytest.raises(ValueError, match="negative"):
        global_topk(x, W, b, -1)
    for budget in (torch.full((5,), 3), torch.full((4,), 1), torch.full((5,), -1)):
        with pytest.raises(ValueError, match="between 0 and 2"):
            per_feature_topm(x, W, b, budget)


@pytest.mark.parametrize("impl", ["auto", "reference", "torch", "numba"])
def test_what_does_not_fit_is_refused(impl: str) -> None:
    """Compiled loops would read, and write, beyond an array that is too short."""
    x, W, b, budget = torch.randn(2, 3), torch.randn(50, 3), torch.zeros(50), torch.ones(50, dtype=torch.int64)
    wrong = {
        "one bias": (x, W, b[:1]),
        "few biases": (x, W, b[:20]),
        "many biases": (x, W, torch.zeros(51)),
        "other width": (torch.randn(2, 4), W, b),
        "one row": (x[0], W, b),
    }
    for parts in wrong.values():
        with pytest.raises(ValueError, match="do not fit"):
            global_topk(*parts, 7, impl=impl)
        with pytest.raises(ValueError, match="do not fit"):
            per_feature_topm(*parts, budget, impl=impl)
    for threshold_F in (torch.zeros(1), torch.zeros(51)):
        with pytest.raises(ValueError, match="threshold_F must hold 50 numbers"):
            per_feature_topm(x, W, b, budget, threshold_F=threshold_F, impl=impl)
