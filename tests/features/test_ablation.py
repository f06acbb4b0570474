"""The sign and size of a feature's effect on the loss, on a planted circuit."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from toy import SPEC, SignedDictionary, ToyHost, ToyPlan, ToySource

from saetools.features import ablation
from saetools.features.ablation import loss_effects, with_loss_effects
from saetools.features.collect import CollectSettings, collect
from saetools.features.entries import Description, describe

POINT = "blocks.0.hook_out"


class CircuitHost(ToyHost):
    """logits = E[token] W_U^T, with an embedding that makes token 1 predict token 2 through feature 0 alone."""

    prepend_bos = True
    device = "cpu"

    def __init__(self) -> None:
        super().__init__(with_norm=False)
        self.embedding_VD = torch.zeros_like(self.W_U_VD)
        self.W_U_VD.zero_()[2, 0] = 1.0
        self.embedding_VD[1, 0] = 4.0

    def canonical(self, point: str) -> str:
        return point

    def logits(self, ids_BT: Tensor, edits: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        x_BTD = self.embedding_VD[ids_BT]
        return (edits[POINT](x_BTD) if edits else x_BTD) @ self.W_U_VD.T


@pytest.fixture
def dictionary() -> SignedDictionary:
    made = SignedDictionary(n_features=4, k=1)
    made.W_FD = torch.eye(8)[:4]
    return made


def test_a_feature_that_helps_has_a_positive_effect(dictionary: SignedDictionary) -> None:
    host, ids_BT = CircuitHost(), torch.tensor([[0, 1, 2, 1, 3]])
    effect_T = loss_effects(host, dictionary, POINT, ids_BT, 0)[0]
    n_tokens = len(host.W_U_VD)
    with_feature = torch.zeros(n_tokens)
    with_feature[2] = 4.0
    log_z = torch.logsumexp(with_feature, 0)
    uniform = torch.log(torch.tensor(float(n_tokens)))
    assert effect_T[2] == pytest.approx(float(uniform - (log_z - 4.0))), "2 after 1 is predicted by the feature"
    assert effect_T[4] == pytest.approx(float(uniform - log_z)), "3 after 1 is made less likely by it: negative"
    assert effect_T[4] < 0 < effect_T[2] and effect_T[[0, 1, 3]].abs().max() == 0
    assert loss_effects(host, dictionary, POINT, ids_BT, 1).abs().max() == 0, "a silent feature has no effect"
    assert loss_effects(host, dictionary, POINT, torch.tensor([[1, 2]]), 0).abs().max() == 0, "BOS is left as it is"


def test_logits_of_a_large_vocabulary_are_held_for_a_few_windows_at_a_time(
    dictionary: SignedDictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 windows of 1,024 tokens over 256,000 entries, in one pass with and one without, would be 40 GB."""
    host, ids_BT, rows = CircuitHost(), torch.tensor([[0, 1, 2, 1, 3], [0, 2, 1, 2, 2], [0, 3, 3, 1, 2]]), []
    whole, logits = loss_effects(host, dictionary, POINT, ids_BT, 0), host.logits
    monkeypatch.setattr(host, "logits", lambda ids, edits=None: rows.append(len(ids)) or logits(ids, edits))
    monkeypatch.setattr(ablation, "LOGIT_BYTES", 4 * 5 * len(host.W_U_VD))
    assert torch.equal(loss_effects(host, dictionary, POINT, ids_BT, 0), whole)
    assert rows == [1] * 6


def test_examples_carry_the_effects_of_their_tokens(dictionary: SignedDictionary) -> None:
    plan, host = ToyPlan(), CircuitHost()
    collected = collect(dictionary, ToySource(plan), plan, CollectSettings(n_top=3, n_random=2, before=4, after=3))
    _, entries = describe(collected, dictionary, SPEC, host, Description("toy"))
    found = {e.record.feature: e for e in with_loss_effects(entries, collected.contexts, host, dictionary, POINT, {0})}
    top = [example for example in found[0].examples if example.band == "top"]
    assert top and all(len(example.loss_effects) == len(example.tokens) for example in top)
    assert not any(example.loss_effects for example in found[1].examples)
    ids = {text: index for index, text in enumerate(["the ", "def", " é"])}
    for example in top:
        for before, token, effect in zip(example.tokens, example.tokens[1:], example.loss_effects[1:], strict=False):
            if before == "def":
                assert (effect > 0) == (ids.get(token) == 2)
            else:
                assert effect == 0
