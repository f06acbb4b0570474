"""Orthogonal matching pursuit against least squares; ITDA's scores."""

import pytest
import torch
from torch.nn.functional import normalize

from saetools.kernels.gram import Gram
from saetools.kernels.itda import novel_rows, relative_error_N
from saetools.kernels.matching_pursuit import matching_pursuit
from saetools.kernels.omp import cases, omp


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_cases(impl: str) -> None:
    cases.verify(impl)


def test_the_gate_sees_coefficients_that_are_not_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def pursuit(x, W, n, impl, **options):
        return omp(x, W, n, impl=impl, **options) if impl == "reference" else matching_pursuit(x, W, n, rule="absolute")

    monkeypatch.setattr(cases, "omp", pursuit)
    with pytest.raises(AssertionError, match=r"other atoms|values: error"):
        cases.verify("torch")


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_coefficients_are_least_squares(impl: str) -> None:
    case = next(cases.cases())
    values, indices, residual = omp(case.x_ND, case.W_FD, 6, impl=impl)
    for x, value, index, left in zip(case.x_ND, values, indices, residual):
        atoms = case.W_FD[index.long()]
        expected = torch.linalg.lstsq(atoms.T.double(), x.double()[:, None]).solution[:, 0]
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-4)
        assert (atoms @ left).abs().max() < 1e-4


def test_gradcheck() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, 5, generator=g, dtype=torch.float64).requires_grad_()
    W = normalize(torch.randn(11, 5, generator=g, dtype=torch.float64), dim=1).requires_grad_()
    for impl in ("reference", "torch"):
        assert torch.autograd.gradcheck(lambda x, W, impl=impl: omp(x, W, 3, impl=impl)[::2], (x, W))


def test_bad_arguments() -> None:
    x, W = torch.randn(2, 3), torch.randn(5, 3)
    with pytest.raises(ValueError, match="known: absolute"):
        omp(x, W, 2, rule="signed")
    with pytest.raises(ValueError, match=r"0\.\.5"):
        omp(x, W, 6)


def test_not_finite_rows_are_seen() -> None:
    case = next(cases.cases())
    x = case.x_ND.clone()
    x[3, 2] = torch.nan
    for impl in ("torch", "numba"):
        values, _, residual = omp(x, case.W_FD, 3, impl=impl)
        assert not residual[3].isfinite().all()
        assert residual[4:].isfinite().all() and values[4:].isfinite().all()


def test_novel_rows_are_neither_explained_nor_twins() -> None:
    basis = torch.eye(6)
    gram = Gram(basis[:2])
    rows = torch.stack(
        [basis[0] * 3, basis[2], basis[2] * -5 + basis[3] * 0.01, basis[3], torch.zeros(6), basis[0] + basis[1]]
    )
    error = relative_error_N(rows, gram, 2)
    torch.testing.assert_close(error, torch.tensor([0.0, 1, 1, 1, 0, 0]), atol=1e-6, rtol=0)
    assert novel_rows(rows, gram, 2, 0.1).tolist() == [1, 3]
    assert novel_rows(rows, Gram(basis[:0]), 2, 0.1).tolist() == [0, 1, 3, 5]
    assert novel_rows(rows[:0], gram, 2, 0.1).tolist() == []
