"""Every kernel at shapes that hypothesis draws, judged as its cases are; global and per-feature selection elsewhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetools.kernels.auxk import cases as auxk_cases
from saetools.kernels.backend import Impl
from saetools.kernels.backward_adam import cases as backward_adam_cases
from saetools.kernels.decode import cases as decode_cases
from saetools.kernels.decode_loss import cases as decode_loss_cases
from saetools.kernels.encode_topk import cases as encode_topk_cases
from saetools.kernels.matching_pursuit import cases as pursuit_cases
from saetools.kernels.omp import cases as omp_cases

SOME = settings(max_examples=25, deadline=None, derandomize=True)
N, D, F, K = st.integers(0, 40), st.integers(1, 35), st.integers(1, 200), st.integers(1, 12)
compiled = pytest.mark.parametrize("impl", ["torch", "numba"])


@compiled
@SOME
@given(n=N, d=D, f=F, k=st.integers(1, 200), relu=st.booleans(), screened=st.booleans())
def test_encode_topk(impl: Impl, n: int, d: int, f: int, k: int, relu: bool, screened: bool) -> None:
    case = encode_topk_cases.random_case("any", n, d, f, min(k, f))
    precision = "bf16-screen" if screened and impl == "numba" else "fp32"
    encode_topk_cases.verify_case(case, impl, precision, torch.float32, relu)


@compiled
@SOME
@given(n=N, d=D, f=F, k=st.integers(0, 12))
def test_decode(impl: Impl, n: int, d: int, f: int, k: int) -> None:
    decode_cases.verify_case(decode_cases.random_case("any", n, min(k, f), f, d), impl)


@compiled
@SOME
@given(n=N, d=D, f=F, k=K, n_groups=st.integers(1, 4))
def test_decode_loss(impl: Impl, n: int, d: int, f: int, k: int, n_groups: int) -> None:
    weights = tuple(1.0 / (1 + group) for group in range(n_groups))
    decode_loss_cases.verify_case(decode_loss_cases.random_case("any", n, min(k, f), f, d, weights), impl)


@compiled
@SOME
@given(n=N, d=D, f=F, k=K, n_groups=st.integers(1, 3), n_extra=st.integers(0, 20), clip=st.sampled_from([0.1, 1e9]))
def test_backward_adam(impl: Impl, n: int, d: int, f: int, k: int, n_groups: int, n_extra: int, clip: float) -> None:
    case = backward_adam_cases.random_case("any", n, min(k, f), f, d, n_groups, min(n_extra, f), clip, shrink=0.1)
    backward_adam_cases.verify_case(case, impl)


@compiled
@SOME
@given(n=st.integers(2, 40), d=D, f=F, dead=st.floats(0, 1), k=K)
def test_auxk(impl: Impl, n: int, d: int, f: int, dead: float, k: int) -> None:
    auxk_cases.verify_case(auxk_cases.random_case("any", n, d, f, max(1, round(dead * f)), k), impl)


@compiled
@SOME
@given(n=N, d=st.integers(2, 35), f=F, steps=st.integers(0, 8), with_gram=st.booleans())
def test_matching_pursuit(impl: Impl, n: int, d: int, f: int, steps: int, with_gram: bool) -> None:
    case = pursuit_cases.random_case("any", n, d, f, min(steps, f, d), rule="absolute")
    pursuit_cases.verify_case(case, impl, with_gram)


@compiled
@SOME
@given(n=N, d=st.integers(8, 35), f=F, steps=st.integers(1, 4))
def test_omp(impl: Impl, n: int, d: int, f: int, steps: int) -> None:
    for with_gram in (True, False):
        omp_cases.verify_case(pursuit_cases.random_case("any", n, d, f, min(steps, f)), impl, with_gram)
