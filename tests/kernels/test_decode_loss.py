"""decode_loss against float64 and against autograd."""

import pytest
import torch

from saetools.kernels.decode_loss import cases, decode_loss
from saetools.kernels.sparse import Sparse


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_cases(impl: str) -> None:
    cases.verify(impl)


def test_other_dtypes() -> None:
    cases.verify("torch", torch.float64)


def test_the_oracle_sees_a_small_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_wrong(*args: object, **kwargs: object) -> tuple[torch.Tensor, ...]:
        loss, pull, dots = decode_loss(*args, **kwargs)
        return loss, pull, dots * (1 + 1e-5) if kwargs["impl"] == "numba" else dots

    monkeypatch.setattr(cases, "decode_loss", slightly_wrong)
    with pytest.raises(AssertionError, match="numba: dots: error"):
        cases.verify("numba")


@pytest.mark.parametrize("name", ["plain", "nested groups"])
def test_the_stated_gradients_are_those_of_autograd(name: str) -> None:
    case = next(c for c in cases.cases() if c.name == name).to(torch.float64)
    rows, factor = case.code.rows(), 0.3
    leaves = [t.clone().requires_grad_() for t in (case.code.values_M, case.W_FD, case.b_D)]
    values, W, b = leaves
    loss = torch.zeros((), dtype=torch.float64)
    for g, weight in enumerate(case.weights):
        inside = torch.where(case.group_M <= g, values, 0)
        code = torch.zeros(len(case.x_ND), len(W), dtype=torch.float64)
        code = code.index_put((rows, case.code.indices_M.long()), inside, accumulate=True)
        loss = loss + factor * weight * (case.x_ND - code @ W - b).square().sum()
    dvalues, dW, db = torch.autograd.grad(loss, leaves)

    _, pull, dots = decode_loss(case.x_ND, case.code, case.W_FD, case.b_D, group_M=case.group_M, weights=case.weights)
    used = case.code.values_M != 0
    torch.testing.assert_close(-2 * factor * dots, torch.where(used, dvalues, 0))
    torch.testing.assert_close(-2 * factor * pull[:, 0].sum(0), db)
    mine = -2 * factor * case.code.values_M[:, None] * pull[rows, case.group_M.long()]
    torch.testing.assert_close(torch.zeros_like(dW).index_add(0, case.code.indices_M.long(), mine), dW)


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_shapes_that_do_not_fit_are_refused(impl: str) -> None:
    """Compiled loops would read beyond the shorter."""
    case = next(cases.cases())
    x, code, W, b = case.x_ND, case.code, case.W_FD, case.b_D
    short = Sparse(code.values_M, code.indices_M[:-1], code.offsets_N1)
    for wrong in ((x[:, :5], code, W, b), (x, code, W, b[:5]), (x[:3], code, W, b), (x, short, W, b)):
        with pytest.raises(ValueError, match=r"do not fit|a code of"):
            decode_loss(*wrong, impl=impl)
    with pytest.raises(ValueError, match="a code of"):
        decode_loss(x, code, W, b, group_M=torch.zeros(3, dtype=torch.uint8), impl=impl)
