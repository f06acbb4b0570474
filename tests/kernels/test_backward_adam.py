"""backward_adam against float64, against autograd with torch.optim.Adam, and its guards."""

from dataclasses import replace

import pytest
import torch

from saetools.kernels.backward_adam import Batch, Rule, Weights, backward_adam, cases
from saetools.kernels.backward_adam.reference import gradients
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import encode_topk
from saetools.kernels.sparse import Sparse


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_cases(impl: str) -> None:
    cases.verify(impl)


def test_the_oracle_sees_a_missing_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    from saetools.kernels.backward_adam import stock

    monkeypatch.setattr(stock, "project_", lambda gradient, weight: None)
    with pytest.raises(AssertionError, match="plain, torch: norm"):
        cases.verify("torch")


def topk_loss(weights: Weights, x: torch.Tensor, k: int) -> torch.Tensor:
    values, indices = encode_topk(x - weights.b_dec_D, weights.W_enc_FD, weights.b_enc_F, k, impl="reference")
    code = torch.zeros(len(x), len(weights.b_enc_F), dtype=x.dtype).scatter_add(1, indices.long(), values)
    return (x - code @ weights.W_dec_FD - weights.b_dec_D).square().sum(1).mean()


def test_gradients_equal_autograd() -> None:
    case = next(cases.cases()).copy(torch.float64)
    x, k = torch.randn(11, 24, dtype=torch.float64), 6
    leaves = Weights(*(t.clone().requires_grad_() for t in case.weights))
    expected = torch.autograd.grad(topk_loss(leaves, x, k), list(leaves))
    w = case.weights
    code = Sparse.fixed(*encode_topk(x - w.b_dec_D, w.W_enc_FD, w.b_enc_F, k))
    _, pull, dots = decode_loss(x, code, w.W_dec_FD, w.b_dec_D)
    got = gradients(w, Batch(x - w.b_dec_D, code, pull, dots, 2 / len(x)), None)
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(mine, theirs)


def test_squares_of_gradients() -> None:
    cases.verify_gradients("numba")


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_ten_steps_equal_torch_adam(impl: str) -> None:
    case = next(cases.cases()).copy(torch.float32)
    x, k = torch.randn(64, 24, generator=torch.Generator().manual_seed(5)), 6
    mine = case.weights
    zeros = [Weights(*(torch.zeros_like(t) for t in mine)) for _ in range(2)]
    theirs = Weights(*(t.clone().requires_grad_() for t in mine))
    adam = torch.optim.Adam(list(theirs), lr=1e-3, eps=1e-4)  # a large eps: tiny gradients have no certain sign
    for step in range(10):
        adam.zero_grad()
        topk_loss(theirs, x, k).backward()
        with torch.no_grad():
            g, w = theirs.W_dec_FD.grad, theirs.W_dec_FD
            g -= (g * w).sum(1, keepdim=True) * w
            torch.nn.utils.clip_grad_norm_(list(theirs), 1.0)
            adam.step()
            w /= w.norm(dim=1, keepdim=True)
        code = Sparse.fixed(*encode_topk(x - mine.b_dec_D, mine.W_enc_FD, mine.b_enc_F, k))
        _, pull, dots = decode_loss(x, code, mine.W_dec_FD, mine.b_dec_D, impl=impl)
        batch = Batch(x - mine.b_dec_D, code, pull, dots, 2 / len(x))
        backward_adam(mine, *zeros, batch, Rule(lr=1e-3, n_steps=step, eps=1e-4), impl=impl)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
@pytest.mark.parametrize("where", ["values", "dots", "pull", "extra"])
def test_nothing_changes_where_a_number_is_not_finite(impl: str, where: str) -> None:
    case = next(c for c in cases.cases() if c.name == "extra rows").copy(torch.float32)
    before = [t.clone() for four in (case.weights, case.first, case.second) for t in four]
    used = int(case.batch.code.values_M.nonzero()[5])
    for bad in (torch.nan, torch.inf):
        damaged = case.copy(torch.float32)
        b = damaged.batch
        target = {
            "values": b.code.values_M[used : used + 1],
            "dots": b.dots_M[used : used + 1],
            "pull": b.pull_NGD[3, 0, :1],
            "extra": damaged.extra.W_enc_AD[2, :1],
        }[where]
        target.fill_(bad)
        four = (case.weights, case.first, case.second)
        norm = backward_adam(*four, b, case.rule, damaged.extra, impl=impl)
        assert not norm < torch.inf
        for old, new in zip(before, (t for w in four for t in w)):
            assert torch.equal(old, new)


def test_results_do_not_depend_on_threads() -> None:
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        case = next(c for c in cases.cases() if c.name == "extra rows").copy(torch.float32)
        backward_adam(case.weights, case.first, case.second, case.batch, case.rule, case.extra, impl="numba")
        results.append(case)
    for a, b in zip(results[0].weights, results[1].weights):
        assert torch.equal(a, b)


def test_parameters_that_are_not_contiguous_are_refused() -> None:
    case = next(cases.cases()).copy(torch.float32)
    turned = replace(case.weights, W_enc_FD=case.weights.W_enc_FD.T.contiguous().T)
    with pytest.raises(ValueError, match="contiguous"):
        backward_adam(turned, case.first, case.second, case.batch, case.rule)


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_shapes_that_do_not_fit_are_refused(impl: str) -> None:
    """Compiled loops would read, and write, beyond the shorter."""
    case = next(c for c in cases.cases() if c.name == "extra rows").copy(torch.float32)
    b, w, e = case.batch, case.weights, case.extra
    assert e is not None
    for wrong in (
        (w, case.first, replace(b, dots_M=b.dots_M[:3]), e),
        (w, case.first, replace(b, x_ND=b.x_ND[:, :2]), e),
        (w, case.first, replace(b, x_ND=b.x_ND[:3]), e),
        (w, case.first, replace(b, pull_NGD=b.pull_NGD[:3]), e),
        (w, case.first, replace(b, group_M=torch.zeros(1, dtype=torch.uint8)), e),
        (w, case.first, b, replace(e, W_dec_AD=e.W_dec_AD[:1])),
        (w, replace(case.first, W_enc_FD=case.first.W_enc_FD[:4]), b, e),
        (replace(w, b_enc_F=w.b_enc_F[:4]), replace(case.first, b_enc_F=w.b_enc_F[:4]), b, e),
    ):
        weights, first, batch, extra = wrong
        with pytest.raises(ValueError, match=r"fits|a code of|shapes of the parameters"):
            backward_adam(weights, first, case.second, batch, case.rule, extra, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
def test_an_infinite_bound_clips_nothing(impl: str) -> None:
    wide, unbound = (next(c for c in cases.cases() if c.name == "not clipped").copy(torch.float32) for _ in range(2))
    rule = replace(wide.rule, clip_norm=torch.inf)
    backward_adam(wide.weights, wide.first, wide.second, wide.batch, wide.rule, impl=impl)
    norm = backward_adam(unbound.weights, unbound.first, unbound.second, unbound.batch, rule, impl=impl)
    assert norm > 1
    assert all(torch.equal(a, b) for a, b in zip(wide.weights, unbound.weights))
    unbound.batch.dots_M[int(unbound.batch.code.values_M.nonzero()[5])] = torch.inf
    before = [t.clone() for t in unbound.weights]
    assert not backward_adam(unbound.weights, unbound.first, unbound.second, unbound.batch, rule, impl=impl) < torch.inf
    assert all(torch.equal(a, b) for a, b in zip(before, unbound.weights))
