"""Effects of the weights against the obvious formulas."""

import pytest
import torch
from toy import SignedDictionary, ToyHost

from saetools.features import effects
from saetools.features.effects import cosine_neighbours, logit_effects
from saetools.features.places import principal_map


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_logit_effects_equal_the_product(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "BLOCK_BYTES", block_bytes)
    host, W_FD = ToyHost(), SignedDictionary().directions()
    found = logit_effects(W_FD, *host.unembedding(), n_tokens=3)
    effect_FV = torch.einsum("fd,d,vd->fv", W_FD, host.norm_D, host.W_U_VD)
    torch.testing.assert_close(found.top_values_FJ, effect_FV.sort(descending=True).values[:, :3])
    torch.testing.assert_close(found.bottom_values_FJ, effect_FV.sort().values[:, :3])
    torch.testing.assert_close(effect_FV.gather(1, found.top_tokens_FJ), found.top_values_FJ)
    assert (found.counts_FB.sum(1) == effect_FV.shape[1]).all()
    assert (found.counts_FB[:, [0, -1]] > 0).all(), "the ends of the axis are the extremes"


def test_ten_tokens_and_twenty_neighbours_are_listed() -> None:
    generator = torch.Generator().manual_seed(1)
    W_FD, W_U_VD = torch.randn(60, 8, generator=generator), torch.randn(50, 8, generator=generator)
    found = logit_effects(W_FD, W_U_VD, None)
    assert torch.equal(found.top_tokens_FJ, (W_FD @ W_U_VD.T).sort(descending=True).indices[:, :10])
    assert torch.equal(found.bottom_tokens_FJ, (W_FD @ W_U_VD.T).sort().indices[:, :10])
    assert cosine_neighbours(W_FD)[0].shape == (60, 20)


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_neighbours_equal_all_pairs(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "BLOCK_BYTES", block_bytes)
    W_FD = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    cosine_FJ, feature_FJ = cosine_neighbours(W_FD, 4)
    all_FF = torch.nn.functional.cosine_similarity(W_FD[:, None], W_FD[None], dim=2).fill_diagonal_(-2)
    torch.testing.assert_close(cosine_FJ, all_FF.sort(descending=True).values[:, :4])
    assert torch.equal(feature_FJ, all_FF.sort(descending=True).indices[:, :4])


def test_the_map_is_the_svd_and_says_how_much_it_shows() -> None:
    W_FD = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.rand(40, 1)
    xy_F2, explained = principal_map(W_FD)
    unit = torch.nn.functional.normalize(W_FD.double(), dim=1)
    u, s, _ = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    torch.testing.assert_close(xy_F2.abs(), (u * s)[:, :2].abs())
    assert explained == pytest.approx(float((s[:2] ** 2).sum() / (s**2).sum()))


def test_tokens_without_a_text_are_numbered() -> None:
    """Rows that pad a vocabulary, and parts of a character: a list of blanks says nothing."""
    effects = logit_effects(torch.ones(1, 2), torch.arange(8.0).view(4, 2), None)
    texts = effects.texts(lambda ids: [["", "\ufffd", " ", "a\ufffd"][i] for i in ids])
    assert texts == {0: "<token 0>", 1: "<token 1>", 2: " ", 3: "a\ufffd"}
    assert [weight.token for weight in effects.record(0, texts).bottom] == ["<token 0>", "<token 1>", " ", "a\ufffd"]
