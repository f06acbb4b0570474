"""auxk against float64, against the loss of the functional room, and where it has nothing to do."""

import pytest
import torch

from saetools.functional.losses import auxk as plain_auxk
from saetools.kernels.auxk import auxk, cases


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_cases(impl: str) -> None:
    cases.verify(impl)


@pytest.mark.parametrize("case", list(cases.cases()), ids=lambda c: c.name)
def test_gradients_are_those_of_the_functional_loss(case: cases.Case) -> None:
    x, residual, *weights = (t.double() for t in case.tensors)
    W_enc, b_enc, W_dec = (t.clone().requires_grad_() for t in weights)
    b_dec = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    dead = case.dead_A
    loss = plain_auxk(x, residual, W_enc[dead], b_enc[dead], b_dec, W_dec[dead], case.k_aux)
    dW_enc, db_enc, dW_dec, db_dec = torch.autograd.grad(loss, (W_enc, b_enc, W_dec, b_dec))
    got, extra = auxk(x, residual, *weights[:2], weights[2], dead, case.k_aux, 1.0)
    torch.testing.assert_close(got, loss.detach())
    torch.testing.assert_close(extra.W_enc_AD, dW_enc[dead])
    torch.testing.assert_close(extra.W_dec_AD, dW_dec[dead])
    torch.testing.assert_close(extra.b_enc_A, db_enc[dead])
    torch.testing.assert_close(extra.b_dec_D, db_dec)


def test_nothing_to_do() -> None:
    case = next(cases.cases())
    none = torch.empty(0, dtype=torch.int64)
    x, residual, *weights = case.tensors
    for arguments in (
        (x, residual, *weights, none),
        (x[:1], residual[:1], *weights, case.dead_A),
        (x[:0], residual[:0], *weights, case.dead_A),
        (x[:7], residual[:1].expand(7, -1), *weights, case.dead_A),  # the mean of equal rows is not quite theirs
    ):
        loss, extra = auxk(*arguments, 4, 1.0)
        assert float(loss) == 0 and extra is None
