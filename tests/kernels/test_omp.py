"""Orthogonal matching pursuit against least squares."""

from itertools import product

import pytest
import torch
from torch.nn.functional import normalize

from saetools.kernels import gram
from saetools.kernels.gram import Gram
from saetools.kernels.matching_pursuit import matching_pursuit
from saetools.kernels.omp import cases, omp
from tests.kernels.largest import Largest


@pytest.mark.parametrize(("impl", "with_gram"), [("torch", True), ("numba", True), ("torch", False)])
def test_cases(impl: str, with_gram: bool) -> None:
    cases.verify(impl, with_gram)


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_no_gram_matrix_is_built_beyond_the_bound(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    x, W = torch.randn(120, 16, generator=g), normalize(torch.randn(400, 16, generator=g), dim=1)
    built = omp(x, W, 5, impl=impl)
    monkeypatch.setattr(gram, "GRAM_BYTES", 4 * 400**2 - 1)
    with Largest() as largest:
        values, indices, residual = omp(x, W, 5, impl=impl)
    assert largest.n == 120 * 400
    assert torch.equal(indices, built[1])
    torch.testing.assert_close((values, residual), built[::2], rtol=1e-4, atol=1e-5)


def test_the_gate_sees_coefficients_that_are_not_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def pursuit(x, W, n, impl, **options):
        return omp(x, W, n, impl=impl, **options) if impl == "reference" else matching_pursuit(x, W, n, rule="absolute")

    monkeypatch.setattr(cases, "omp", pursuit)
    with pytest.raises(AssertionError, match=r"other atoms|values: error"):
        cases.verify("torch", True)


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_coefficients_are_least_squares(impl: str) -> None:
    case = next(cases.cases())
    values, indices, residual = omp(case.x_ND, case.W_FD, 6, impl=impl)
    for x, value, index, left in zip(case.x_ND, values, indices, residual):
        atoms = case.W_FD[index.long()]
        expected = torch.linalg.lstsq(atoms.T.double(), x.double()[:, None]).solution[:, 0]
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-4)
        assert (atoms @ left).abs().max() < 1e-4


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
@pytest.mark.parametrize("with_gram", [False, True])
def test_ties_go_to_the_lowest_index(impl: str, with_gram: bool) -> None:
    """Of axes and whole numbers all arithmetic is exact, so that equal atoms tie on every machine."""
    x = torch.tensor([[5.0, -4, 3, 2], [1, 1, -1, 1], [0, 2, 2, 3]])
    W = torch.eye(4).repeat(3, 1)
    values, indices, residual = omp(x, W, 3, impl=impl, gram=Gram(W) if with_gram else None)
    assert indices.tolist() == [[0, 1, 2], [0, 1, 2], [3, 1, 2]]
    assert values.tolist() == [[5, -4, 3], [1, 1, -1], [3, 2, 2]]
    assert residual.tolist() == [[0, 0, 0, 2], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_gradcheck() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, 5, generator=g, dtype=torch.float64).requires_grad_()
    W = normalize(torch.randn(11, 5, generator=g, dtype=torch.float64), dim=1).requires_grad_()
    for impl in ("reference", "torch"):
        assert torch.autograd.gradcheck(lambda x, W, impl=impl: omp(x, W, 3, gram=None, impl=impl)[::2], (x, W))
    assert torch.autograd.gradcheck(lambda x, W: omp(x, W, 3, gram=Gram(W.detach()), impl="torch")[::2], (x, W))


def test_bad_arguments() -> None:
    x, W = torch.randn(2, 3), torch.randn(5, 3)
    with pytest.raises(ValueError, match="known: absolute"):
        omp(x, W, 2, rule="signed")
    with pytest.raises(ValueError, match=r"0\.\.5"):
        omp(x, W, 6)
    with pytest.raises(ValueError, match="of 4 atoms, but there are 5"):
        omp(x, W, 2, gram=Gram(W[:4]))


def test_not_finite_rows_are_seen() -> None:
    case = next(cases.cases())
    x = case.x_ND.clone()
    for x[3, 2], impl, built in product(
        (torch.nan, torch.inf), ("reference", "torch", "numba"), (None, Gram(case.W_FD))
    ):
        rows, atoms = x.clone().requires_grad_(), case.W_FD.clone().requires_grad_()
        values, _, residual = omp(rows, atoms, 3, impl=impl, gram=built)
        assert not residual[3].isfinite().all()
        assert residual[4:].isfinite().all() and values[4:].isfinite().all()
        residual.square().sum().backward()  # training asks the loss whether the batch is to be skipped, after this
        assert not atoms.grad.isfinite().all() and rows.grad[4:].isfinite().all()
