"""Inputs on which every implementation of `backward_adam` is judged: by the tests, and by the benchmark's gate."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saetools.kernels.backend import Impl
from saetools.kernels.backward_adam import Batch, ExtraRows, Rule, Weights, backward_adam, feature_squares, gradients
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.oracle import assert_as_good, on
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace


@dataclass(frozen=True)
class Case:
    name: str
    weights: Weights
    first: Weights
    second: Weights
    batch: Batch
    rule: Rule
    extra: ExtraRows | None = None

    def copy(self, dtype: torch.dtype) -> "Case":
        """The case in a dtype, with tensors of its own."""

        def to(t: Tensor) -> Tensor:
            return t.to(dtype, copy=True)

        weights, first, second = (Weights(*map(to, w)) for w in (self.weights, self.first, self.second))
        b, e = self.batch, self.extra
        code = Sparse(to(b.code.values_M), b.code.indices_M, b.code.offsets_N1)
        batch = replace(b, x_ND=to(b.x_ND), code=code, pull_NGD=to(b.pull_NGD), dots_M=to(b.dots_M))
        if e is not None:
            e = ExtraRows(e.features_A, to(e.W_enc_AD), to(e.W_dec_AD), to(e.b_enc_A), to(e.b_dec_D))
        return Case(self.name, weights, first, second, batch, self.rule, e)


def random_case(
    name: str,
    N: int,
    K: int,
    F: int,
    D: int,
    n_groups: int = 1,
    n_extra: int = 0,
    clip_norm: float = 1.0,
    shrink: float = 0.0,
) -> Case:
    g = torch.Generator().manual_seed(N + K * 11 + F * 5 + D)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    weights, first, second = (Weights(randn(F, D), randn(F, D), randn(F), randn(D)) for _ in range(3))
    weights = replace(weights, W_dec_FD=normalize(weights.W_dec_FD, dim=1))
    second = Weights(*(t.square() for t in second))
    values = randn(N, K).relu()
    indices = torch.rand(N, F, generator=g).argsort(1)[:, :K]
    code = Sparse.fixed(values, torch.where(values > 0, indices, 0).int())
    x = randn(N, D)
    loss_weights = tuple(1.0 / (i + 1) for i in range(n_groups))
    group = torch.randint(n_groups, (N * K,), generator=g, dtype=torch.uint8)
    _, pull, dots = decode_loss(
        *(x, code, weights.W_dec_FD, weights.b_dec_D), group_M=group, weights=loss_weights, impl="reference"
    )
    extra = None
    if n_extra:
        features = torch.randperm(F, generator=g)[:n_extra]
        extra = ExtraRows(features, randn(n_extra, D), randn(n_extra, D), randn(n_extra), randn(D))
    batch = Batch(x - weights.b_dec_D, code, pull, dots, 2.0 / max(N, 1), group, shrink)
    return Case(name, weights, first, second, batch, Rule(lr=1e-2, n_steps=3, clip_norm=clip_norm), extra)


def cases() -> Iterator[Case]:
    yield random_case("plain", 37, 8, 512, 24)
    yield random_case("not clipped", 37, 8, 512, 24, clip_norm=1e9)
    yield random_case("odd sizes", 33, 5, 101, 7)
    yield random_case("k=1", 19, 1, 130, 5)
    yield random_case("k=F", 5, 17, 17, 6)
    yield random_case("no rows", 0, 2, 9, 3)
    yield random_case("two features for many rows", 600, 2, 2, 5)
    yield random_case("nested groups", 21, 9, 40, 8, n_groups=3)
    yield random_case("shrunk values", 37, 8, 512, 24, shrink=0.3)
    yield (base := random_case("extra rows", 21, 9, 70, 8, n_extra=13))
    assert base.extra is not None
    extra = replace(base.extra, b_enc_A=torch.zeros(13), b_dec_D=torch.zeros(8))
    yield replace(base, name="clipped for the extra rows", batch=replace(base.batch, scale=1e-3), extra=extra)


def verify(impl: Impl, device: str = "cpu", most: int | None = None) -> None:
    """AssertionError at the first case whose update is worse than the plain reference's in float32."""
    for case in on(device, cases(), most):
        verify_case(case, impl)


def verify_case(case: Case, impl: Impl) -> None:
    """As `verify`, for one case."""
    results = []
    for which, dtype in ((impl, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        c = case.copy(dtype)
        norm = backward_adam(
            *(c.weights, c.first, c.second, c.batch, c.rule, c.extra), impl=which, workspace=Workspace(poison=True)
        )
        results.append([torch.tensor(norm, dtype=dtype), *c.first, *c.second, *c.weights])
    names = ["norm", *(f"{s} {n}" for s in ("m of", "v of", "new") for n in ("W_enc", "W_dec", "b_enc", "b_dec"))]
    for name, got, plain, exact in zip(names, *results):
        assert_as_good(f"{case.name}, {impl}: {name}", got, plain, exact)


def verify_gradients(impl: Impl, device: str = "cpu", most: int | None = None) -> None:
    """As `verify`, for the gradients themselves and their squares."""
    for case in on(device, cases(), most):
        results = []
        for which, dtype in ((impl, torch.float32), ("torch", torch.float32), ("torch", torch.float64)):
            c = case.copy(dtype)
            tensors = c.weights, c.batch, c.extra
            found = gradients(*tensors, workspace=Workspace(poison=True), impl=which)
            squares = feature_squares(*tensors, workspace=Workspace(poison=True), impl=which)
            results.append([torch.tensor(squares, dtype=dtype), *found])
        for name, got, plain, exact in zip(("squares", "W_enc", "W_dec", "b_enc", "b_dec"), *results):
            assert_as_good(f"{case.name}, {impl}: gradient, {name}", got, plain, exact)
