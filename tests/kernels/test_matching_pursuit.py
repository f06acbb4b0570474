"""Matching pursuit against plain torch and its identities."""

import pytest
import torch
from torch.nn.functional import normalize

from saetools.kernels.matching_pursuit import Gram, cases, matching_pursuit


@pytest.mark.parametrize("with_gram", [False, True])
@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_cases(impl: str, with_gram: bool) -> None:
    cases.verify(impl, with_gram)


def test_most_cases_are_compared_to_the_end() -> None:
    for case in cases.cases():
        x, W = case.x_ND, case.W_FD
        _, expected, _ = matching_pursuit(x.double(), W.double(), case.n_steps, **case.options, impl="reference")
        _, got, _ = matching_pursuit(x, W, case.n_steps, **case.options, impl="numba")
        assert torch.equal(got, expected), case.name


def test_the_gate_sees_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from saetools.kernels.matching_pursuit import stock

    plain = stock.backward
    monkeypatch.setattr(stock, "backward", lambda *args: (plain(*args)[0], plain(*args)[1] * 1.001))
    with pytest.raises(AssertionError, match="dW: error"):
        cases.verify("torch", False)


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_energy_identity_and_monotone_residual(impl: str) -> None:
    case = next(cases.cases())
    before = case.x_ND.square().sum(1)
    for steps in range(1, 6):
        values, _, residual = matching_pursuit(case.x_ND, case.W_FD, steps, rule="absolute", impl=impl)
        after = residual.square().sum(1)
        torch.testing.assert_close(after, before - values[:, -1].square(), rtol=1e-4, atol=1e-4)
        assert (after <= before).all()
        before = after


def test_an_orthonormal_dictionary_is_exact() -> None:
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0].contiguous()
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    for impl in ("torch", "numba"):  # ||r||^2 is a running difference: a row may end where it is rounding of ||x||^2
        left_N = matching_pursuit(x, basis, 12, rule="absolute", impl=impl)[2].norm(dim=1)
        assert (left_N.square() < 1e-6 * x.square().sum(1)).all() and left_N.median() < 1e-5


def test_gradcheck() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, 5, generator=g, dtype=torch.float64).requires_grad_()
    W = normalize(torch.randn(11, 5, generator=g, dtype=torch.float64), dim=1).requires_grad_()
    for impl in ("reference", "torch"):
        assert torch.autograd.gradcheck(
            lambda x, W, impl=impl: matching_pursuit(x, W, 3, rule="absolute", gram=None, impl=impl)[::2], (x, W)
        )


def test_a_gram_matrix_grows_by_blocks() -> None:
    W = torch.randn(30, 7)
    gram = Gram(W[:4])
    for start, stop in ((4, 5), (5, 19), (19, 30)):
        gram.extend_(W[start:stop])
    torch.testing.assert_close(gram.matrix(), W @ W.T)
    assert torch.equal(gram.W_FD, W)
    x = torch.randn(5, 7)
    for impl in ("torch", "numba"):  # memory beyond the atoms is not looked at
        got = matching_pursuit(x, gram.W_FD, 4, rule="absolute", gram=gram, impl=impl)[1]
        assert torch.equal(got, matching_pursuit(x, W, 4, rule="absolute", gram=None, impl="reference")[1])


def test_a_gram_matrix_takes_no_room_for_more_atoms_than_will_come() -> None:
    gram, room = Gram(torch.randn(20, 7), 35), Gram(torch.randn(20, 7))
    for grown in (gram, room):
        grown.extend_(torch.randn(6, 7))
    assert (len(gram.buffer), len(room.buffer)) == (35, 40)


def test_results_do_not_depend_on_threads() -> None:
    case = next(cases.cases())
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        x, W = case.x_ND.clone().requires_grad_(), case.W_FD.clone().requires_grad_()
        values, _, residual = matching_pursuit(x, W, 6, impl="numba", gram=Gram(W.detach()))
        results.append((values, *torch.autograd.grad(residual.square().sum() + values.sum(), (x, W))))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_the_certificate_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding that falls all to one side hides the best atom from bf16 scores; the slack finds it."""
    from saetools.kernels.matching_pursuit import cpu

    monkeypatch.setattr(cpu, "bf16_units", lambda: True)
    low = 1 + 0.98 / 256  # rounds to 1
    x, W = torch.full((1, 127), low), torch.zeros(64, 127)
    W[1:3], W[3] = 1.0, low
    W[1:3, 1:61] += 1 / 128  # exact in bf16: what the scores see of atoms 1 and 2, but not of 3
    W[1:4, 0] = 1.1015625

    def first(rule: str) -> int:
        return int(matching_pursuit(x, W, 1, rule=rule, gram=None, impl="numba")[1][0, 0])

    rules = ("signed", "nonnegative", "absolute")
    assert [first(rule) for rule in rules] == [3, 3, 3]
    step = cpu.screened_step
    monkeypatch.setattr(cpu, "screened_step", lambda score, W, b, slacks, *rest: step(score, W, b, slacks * 0, *rest))
    assert [first(rule) for rule in rules] == [1, 1, 1]


def test_float32_steps_without_bf16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    from saetools.kernels.matching_pursuit import cpu

    monkeypatch.setattr(cpu, "bf16_units", lambda: False)
    cases.verify("numba", False)


def test_not_finite_rows_are_seen() -> None:
    case = next(cases.cases())
    x = case.x_ND.clone()
    x[3, 2] = torch.nan
    for impl in ("torch", "numba"):
        for gram in (None, Gram(case.W_FD)):
            values, _, residual = matching_pursuit(x, case.W_FD, 3, gram=gram, impl=impl)
            assert not residual[3].isfinite().all()
            assert residual[4:].isfinite().all() and values[4:].isfinite().all()


def test_bad_arguments() -> None:
    x, W = torch.randn(2, 3), torch.randn(5, 3)
    with pytest.raises(ValueError, match="known: signed"):
        matching_pursuit(x, W, 2, rule="max")
    with pytest.raises(ValueError, match="only 5 atoms"):
        matching_pursuit(x, W, 6, reselect=False)
    with pytest.raises(ValueError, match="negative"):
        matching_pursuit(x, W, -1)
    with pytest.raises(ValueError, match="of 4 atoms, but there are 5"):
        matching_pursuit(x, W, 2, gram=Gram(W[:4]))


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
@pytest.mark.parametrize("gram", [None, "auto"])
def test_no_atoms(impl: str, gram: str | None) -> None:
    """Unused slots name atom 0, which compiled loops would read where there is none."""
    x, W = torch.randn(20, 3), torch.zeros(0, 3)
    with pytest.raises(ValueError, match="no atoms to select"):
        matching_pursuit(x, W, 2, gram=gram, impl=impl)
    values, indices, residual = matching_pursuit(x, W, 0, gram=gram, impl=impl)
    assert values.shape == indices.shape == (20, 0) and torch.equal(residual, x)


def test_a_gram_matrix_begun_in_inference_mode_grows_outside_it() -> None:
    """An ITDA dictionary that has encoded in inference mode goes on learning."""
    W = torch.randn(30, 7)
    with torch.inference_mode():
        gram = Gram(W[:10])
        gram.extend_(W[10:12])
    gram.extend_(W[12:14])
    torch.testing.assert_close(gram.matrix(), W[:14] @ W[:14].T)
