"""encode_topk against float64, against autograd, and against its own other roads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetools.kernels.encode_topk import cases, encode_by_score, encode_topk
from saetools.kernels.score import Score
from saetools.kernels.workspace import Workspace

IMPLS = ["reference", "torch", "numba"]


@pytest.mark.parametrize("impl", IMPLS)
def test_cases(impl: str) -> None:
    cases.verify(impl)


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_cases_screened(impl: str) -> None:
    cases.verify(impl, "bf16-screen")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cases_in_other_dtypes(dtype: torch.dtype) -> None:
    cases.verify("auto", dtype=dtype)


def test_oracle_sees_a_wrong_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    def second_best(*args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = encode_topk(*args, **kwargs)
        return values.roll(1, 0), indices

    monkeypatch.setattr(cases, "encode_topk", second_best)
    with pytest.raises(AssertionError, match="plain"):
        cases.verify("torch")


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_gradients_equal_the_reference(impl: str, relu: bool) -> None:
    case = next(c for c in cases.cases() if c.name == "few positive")
    grads = []
    for which in ("reference", impl):
        leaves = [t.clone().requires_grad_() for t in (case.x_ND, case.W_FD, case.b_F)]
        values, indices = encode_topk(*leaves, case.k, relu=relu, impl=which)
        weights = torch.sin(indices.float()) + 2
        grads.append(torch.autograd.grad((values.square() * weights).sum(), leaves))
    for expected, got in zip(*grads):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradcheck_of_the_reference_and_the_stock_path() -> None:
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in ((4, 3), (11, 3), (11,))]
    for impl in ("reference", "torch"):
        assert torch.autograd.gradcheck(
            lambda x, W, b, impl=impl: encode_topk(x, W, b, 3, impl=impl)[0].sort(1).values, leaves
        )


def test_a_range_of_features_gives_global_indices() -> None:
    case = next(cases.cases())
    for impl in IMPLS:
        _, indices = encode_topk(case.x_ND, case.W_FD[100:300], case.b_F[100:300], 8, first_feature=100, impl=impl)
        expected = cases.exact_pre(case)[:, 100:300].topk(8).indices + 100
        assert torch.equal(indices.sort(1).values, expected.sort(1).values.int()), impl


def test_results_do_not_depend_on_threads() -> None:
    case = next(cases.cases())
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        results.append(encode_topk(case.x_ND, case.W_FD, case.b_F, 8, precision="bf16-screen", impl="numba"))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("impl", ["torch", "numba"])
@pytest.mark.parametrize("precision", ["fp32", "bf16-screen"])
def test_nan_is_never_lost(impl: str, precision: str) -> None:
    case = next(cases.cases())
    for bad in (torch.nan, -torch.nan, torch.inf):
        W = case.W_FD.clone()
        W[77, 3] = bad
        values, _ = encode_topk(case.x_ND, W, case.b_F, 8, impl=impl, precision=precision)
        assert not values.isfinite().all(), bad
    W = case.W_FD.clone()
    W[77, 3], W[77, 4] = torch.inf, -torch.inf  # inf - inf is a NaN with a minus sign
    lost = (case.x_ND[:, 3] * case.x_ND[:, 4] > 0).nonzero()[:, 0]
    values, _ = encode_topk(case.x_ND, W, case.b_F, 8, impl=impl, precision=precision)
    assert len(lost) and values[lost].isnan().any(dim=1).all()


def spread_out(n: int, d: int, f: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows and features whose norms, and biases, differ by orders of magnitude: hard for bounds."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) * torch.rand(n, 1, generator=g).mul(8).exp2()
    W = torch.randn(f, d, generator=g) * torch.rand(f, 1, generator=g).mul(4).exp2()
    return x, W, torch.randn(f, generator=g) * torch.rand(f, generator=g).mul(8).exp2()


@pytest.mark.parametrize("seed", range(4))
def test_the_screen_is_an_upper_bound(seed: int) -> None:
    from saetools.kernels.encode_topk import screen

    x, W, b = spread_out(64, 96, 512, seed)
    low_x = torch.empty(64, 96 + screen.EXTRA, dtype=torch.int16)
    low_W = torch.empty(512, 96 + screen.EXTRA, dtype=torch.int16)
    screen.shorten_rows(x.numpy(), x.view(torch.int32).numpy(), low_x.numpy())
    screen.shorten_features(W.numpy(), W.view(torch.int32).numpy(), b.numpy(), low_W.numpy())
    torch.testing.assert_close(low_x[:, :96].view(torch.bfloat16), x.bfloat16(), rtol=0, atol=0)
    bound = (low_x.view(torch.bfloat16) @ low_W.view(torch.bfloat16).T).double()
    exact = x.double() @ W.double().T + b
    lost = (bound - exact) / (x.double().norm(dim=1, keepdim=True) * W.double().norm(dim=1))
    assert (bound + bound.abs() * 1.01 * 2**-8 >= exact).all()
    assert lost.mean() < 0.02, "the bound is loose"


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_screened_is_exact_where_compiled(seed: int, relu: bool) -> None:
    x, W, b = spread_out(128, 96, 1024, seed)
    exact = x.double() @ W.double().T + b
    values, _ = encode_topk(x, W, b, 24, relu=relu, precision="bf16-screen", impl="numba")
    expected = exact.topk(24, dim=1).values
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(values.double().sort(1, descending=True).values, expected, rtol=1e-5, atol=1e-3)


def test_the_certificate_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding that falls all to one side hides the best feature from plain bf16 scores; the bound finds it."""
    from saetools.kernels.encode_topk import screen

    low = 1 + 0.98 / 256  # rounds to 1
    x, W = torch.full((1, 127), low), torch.zeros(64, 127)
    W[1:3], W[3] = 1.0, low
    W[1:3, :60] += 1 / 128  # exact in bf16: what the scores see of features 1 and 2, but not of 3
    b = torch.full((64,), 0.1)

    def found() -> set[int]:
        return set(encode_topk(x, W, b, 2, precision="bf16-screen", impl="numba")[1][0].tolist())

    assert set(encode_topk(x, W, b, 2)[1][0].tolist()) == {1, 3}
    assert found() == {1, 3}

    shorten = screen.shorten_features

    def without_bound(W, bits, b, out):
        shorten(W, bits, b, out)
        out[:, W.shape[1] : W.shape[1] + 2] = 0

    monkeypatch.setattr(screen, "shorten_features", without_bound)
    assert found() == {1, 2}


@pytest.mark.parametrize("lost", ["x", "W"])
def test_each_rounding_is_in_the_bound(lost: str) -> None:
    """Feature 1 cancels but for what one rounding takes away; feature 2 is smaller, and exact in bf16."""
    low = 1 + 0.98 / 256  # rounds to 1
    x, W = torch.ones(1, 128), torch.zeros(64, 128)
    W[1, :64], W[1, 64:], W[2, 100] = 1.0, -1.0, 0.125
    (x[0] if lost == "x" else W[1])[:64] = low
    _, indices = encode_topk(x, W, torch.zeros(64), 1, precision="bf16-screen", impl="numba")
    assert indices.item() == 1


@pytest.mark.parametrize("size", [1e-30, 1e-27, 1e-25, 1e-22])
def test_screened_is_exact_where_squares_vanish(size: float) -> None:
    """The norms in the bound are roots of sums of squares, which float32 cannot hold of rows as small as these."""
    g = torch.Generator().manual_seed(0)
    x, W, b = torch.randn(300, 64, generator=g), torch.randn(300, 64, generator=g), torch.zeros(300)
    x[:, :32] = 64 * (x[:, :32] - x[:, :32].mean(1, keepdim=True))  # what is left of long products that cancel
    W[:, :32] = 1 + W[:, :32] / 30
    found = [encode_topk(x * size, W, b, 4, impl="numba", precision=p)[1] for p in ("fp32", "bf16-screen")]
    assert torch.equal(found[0].sort(1).values, found[1].sort(1).values)


def test_a_feature_below_the_first_candidates_is_found() -> None:
    """Feature 1 has the greatest bound, but not the greatest score: what reaches that is looked for again."""
    x, W = torch.ones(1, 128), torch.zeros(64, 128)
    x[0, :64] = 1 + 0.98 / 256
    W[1, 64:96], W[1, 96:], W[1, 127], W[2, 100] = 1.0, -1.0, -1.0 + 0.0625, 0.125
    _, indices = encode_topk(x, W, torch.zeros(64), 1, precision="bf16-screen", impl="numba")
    assert indices.item() == 2


def test_screening_recall_of_the_stock_path() -> None:
    g = torch.Generator().manual_seed(1)
    x, W = torch.randn(256, 128, generator=g), torch.randn(4096, 128, generator=g)
    exact = encode_topk(x, W, torch.zeros(4096), 32)[0]
    screened = encode_topk(x, W, torch.zeros(4096), 32, precision="bf16-screen", impl="torch")[0]
    assert (screened >= exact.min(1, keepdim=True).values - 1e-4).sum() / exact.numel() >= 0.9999


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 20), d=st.integers(1, 9), f=st.integers(1, 400), data=st.data())
def test_any_shape(n: int, d: int, f: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, f))
    g = torch.Generator().manual_seed(n + d + f + k)
    x, W, b = torch.randn(n, d, generator=g), torch.randn(f, d, generator=g), torch.randn(f, generator=g).round()
    workspace = Workspace(poison=True)
    values, indices = encode_topk(x, W, b, k, relu=False, workspace=workspace, impl="numba")
    expected = torch.topk(x @ W.T + b, k).values
    torch.testing.assert_close(values.sort(1, descending=True).values, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((x @ W.T + b).gather(1, indices.long()), values, rtol=1e-4, atol=1e-4)


def test_bad_arguments() -> None:
    x, W, b = torch.randn(2, 3), torch.randn(5, 3), torch.zeros(5)
    for k in (0, 6):
        with pytest.raises(ValueError, match=r"1\.\.5"):
            encode_topk(x, W, b, k)
    with pytest.raises(ValueError, match="float32"):
        encode_topk(x.double(), W.double(), b.double(), 2, impl="numba")
    with pytest.raises(ValueError, match="known: auto"):
        encode_topk(x, W, b, 2, impl="cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16-screen"])
@pytest.mark.parametrize("impl", IMPLS)
def test_shapes_that_do_not_fit_are_refused(impl: str, precision: str) -> None:
    """Compiled loops would have written beyond the screen's table, and read beyond the bias."""
    x, W, b = torch.randn(40, 16), torch.randn(900, 16), torch.randn(900)
    for wrong in ((x[:, :12], W, b), (x.repeat(1, 9), W, b), (x, W.repeat(1, 99), b), (x, W, b[:3]), (x[0], W, b)):
        with pytest.raises(ValueError, match="do not fit"):
            encode_topk(*wrong, 7, impl=impl, precision=precision)
        with pytest.raises(ValueError, match="do not fit"):
            encode_by_score(*wrong, 7, Score("absolute"), impl=impl)
    for k in (0, 901):
        with pytest.raises(ValueError, match=r"1\.\.900"):
            encode_by_score(x, W, b, k, Score("absolute"), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_infinite_gradient_of_an_unused_slot_goes_nowhere(impl: str) -> None:
    """That of sqrt(0), say: feature 0, whose index unused slots have, got NaN."""
    case = next(c for c in cases.cases() if c.name == "few positive")
    leaves = [t.clone().requires_grad_() for t in (case.x_ND, case.W_FD, case.b_F)]
    values, _ = encode_topk(*leaves, case.k, impl=impl)
    assert (values == 0).any() and (values != 0).any()
    for gradient in torch.autograd.grad(values.sqrt().sum(), leaves):
        assert gradient.isfinite().all()


def test_candidates_are_gathered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few features a chunk of pre-activations has many rows, whose candidates took gigabytes at once."""
    largest = 0
    multiply = torch.bmm

    def watched(W_CKD: torch.Tensor, *args: object) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, W_CKD.numel())
        return multiply(W_CKD, *args)

    monkeypatch.setattr(torch, "bmm", watched)
    x, W, b = torch.randn(2000, 256), torch.randn(64, 256), torch.randn(64)
    values, _ = encode_topk(x, W, b, 32, precision="bf16-screen", impl="torch")
    assert 0 < largest <= 1 << 24
    torch.testing.assert_close(values, encode_topk(x, W, b, 32, impl="reference")[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_a_workspace_used_in_inference_mode_is_used_outside_it(impl: str) -> None:
    case, workspace = next(cases.cases()), Workspace()
    tensors = case.x_ND, case.W_FD.clone().requires_grad_(), case.b_F
    with torch.inference_mode():
        expected, _ = encode_topk(*tensors, case.k, workspace=workspace, impl=impl)
    values, _ = encode_topk(*tensors, case.k, workspace=workspace, impl=impl)
    assert torch.equal(values, expected) and values.requires_grad
