"""Defects that other libraries' kernels had, as tests of ours. Named after the library and what went wrong there."""

import pytest
import torch

from saetools.kernels.backend import Impl
from saetools.kernels.decode import decode, stock
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import encode_topk
from saetools.kernels.sparse import Sparse
from tests.kernels.largest import Largest

impls = pytest.mark.parametrize("impl", ["reference", "torch", "numba"])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_sparsify_the_backward_pass_holds_no_row_per_slot(impl: Impl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its FusedEncoder's holds N * k * D numbers at once. Stock operations here gather some of them at a time."""
    monkeypatch.setattr(stock, "CHUNK_ELEMENTS", 10_000)
    n, d, f, k = 256, 48, 400, 32
    x, W, b = drawn(n, d), drawn(f, d, seed=1).requires_grad_(), drawn(f, seed=2).requires_grad_()
    values, indices = encode_topk(x.requires_grad_(), W, b, k, impl=impl)
    recon = decode(values, indices, W, impl=impl)
    with Largest() as largest:
        recon.square().sum().backward()
    assert 0 < largest.n <= n * f < n * k * d / 3


@impls
def test_flashsae_gradients_reach_the_input(impl: Impl) -> None:
    """Its kernels have none with respect to x: no transcoder, no steering, no end-to-end loss could be trained."""
    x, W, b, W_dec = drawn(9, 6).requires_grad_(), drawn(20, 6, seed=1), drawn(20, seed=2), drawn(20, 6, seed=3)
    values, indices = encode_topk(x, W, b, 4, impl=impl)
    recon = decode(values, indices, W_dec, impl=impl)
    (gradient,) = torch.autograd.grad(recon.sin().sum(), [x])
    kept, places = (x @ W.T + b).topk(4, dim=1)
    dense = torch.zeros(9, 20).scatter(1, places, kept.relu()) @ W_dec
    (expected,) = torch.autograd.grad(dense.sin().sum(), [x])
    assert expected.abs().sum(1).gt(0).all()
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@impls
@pytest.mark.parametrize(("d", "f", "k"), [(37, 101, 3), (64, 128, 5), (1, 7, 7), (100, 65, 13)])
def test_flexsae_no_size_need_be_a_multiple_or_a_power(impl: Impl, d: int, f: int, k: int) -> None:
    """Its kernels ask for D by 64 or 256 and K a power of two."""
    x, W, b, W_dec, b_dec = drawn(19, d), drawn(f, d, seed=1), drawn(f, seed=2), drawn(f, d, seed=3), drawn(d, seed=4)
    values, indices = encode_topk(x, W, b, k, impl=impl)
    loss = decode_loss(x, Sparse.fixed(values, indices), W_dec, b_dec, impl=impl)[0]
    kept, places = (x @ W.T + b).topk(k, dim=1)
    recon = torch.zeros(19, f).scatter(1, places, kept.relu()) @ W_dec + b_dec
    torch.testing.assert_close(loss[:, 0], (x - recon).square().sum(1), rtol=1e-4, atol=1e-3)


@impls
def test_openai_one_range_of_features_is_no_special_case(impl: Impl) -> None:
    """Its top-k over features on several devices crashes where there is one."""
    x, W, b = drawn(9, 6), drawn(20, 6, seed=1), drawn(20, seed=2)
    for first in (0, 100):
        values, indices = encode_topk(x, W, b, 4, first_feature=first, impl=impl)
        kept, places = (x @ W.T + b).topk(4, dim=1)
        assert kept.gt(0).all()
        torch.testing.assert_close(values.sort(1).values, kept.sort(1).values)
        assert torch.equal(indices.sort(1).values.long(), places.sort(1).values + first)
