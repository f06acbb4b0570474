"""Defects that other libraries' dictionaries had, as tests of ours. Named after the library and what went wrong there.

V5 (sparsify loses gradients) is in the contract suite for every auxiliary term and in test_topk.py for MultiTopK.
"""

import pytest
import torch

from saetools.dictionaries.base import Dictionary, Progress, available_dictionaries, make_dictionary
from saetools.dictionaries.topk import TopK

N, D, F, K = 24, 6, 20, 5
NOTHING_DEAD = Progress(step=0, n_steps=10, n_tokens=1000, dead_after_tokens=10**9)


def test_v6_zeros_inside_the_top_k_receive_no_gradient() -> None:
    """sparsify 1.3.3: a slot that the rectifier has cut to zero still moves its encoder row."""
    dictionary = make_dictionary(TopK.configure(n_features=F, k=K, aux_weight=0.0), D, seed=0)
    x_ND = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dictionary.b_enc_F.fill_(-1.5)  # fewer than K are positive in most rows
    pre_NF = (x_ND - dictionary.b_dec_D) @ dictionary.W_enc_FD.T + dictionary.b_enc_F
    kept_NF = torch.zeros(N, F).scatter(1, pre_NF.topk(K, dim=1).indices, 1.0) * (pre_NF > 0)
    assert (kept_NF.sum(dim=1) < K).any()
    expected_NF = (pre_NF * kept_NF).detach().requires_grad_()
    recon_ND = expected_NF @ dictionary.W_dec_FD + dictionary.b_dec_D
    loss = (x_ND - recon_ND).square().sum(dim=1).mean() / dictionary.total_variance.float()
    (code_gradient_NF,) = torch.autograd.grad(loss, [expected_NF])
    wanted_FD = (code_gradient_NF * kept_NF).T @ (x_ND - dictionary.b_dec_D)
    terms = dictionary.loss_terms(x_ND, x_ND, {}, dictionary.initial_state(), NOTHING_DEAD)
    (gradient_FD,) = torch.autograd.grad(terms.losses["reconstruction"], [dictionary.W_enc_FD])
    torch.testing.assert_close(gradient_FD, wanted_FD, atol=1e-6, rtol=1e-4)
    silent_F = kept_NF.sum(dim=0) == 0
    assert silent_F.any() and not gradient_FD[silent_F].any()


@pytest.mark.parametrize("cls", dict.fromkeys(available_dictionaries().values()), ids=lambda cls: cls.kind)
def test_overcomplete_using_a_dictionary_changes_nothing_for_training(cls: type[Dictionary]) -> None:
    """Its MpSAE trains without dropout for good once .eval() was called."""
    if cls.trained_by != "gradient":
        pytest.skip("not trained by gradients")
    dictionary = make_dictionary(cls.examples()[0], 16, seed=0).train()
    x_ND = torch.randn(N, 16, generator=torch.Generator().manual_seed(1))
    fields, state = {"grad": x_ND}, dictionary.initial_state()
    before = dictionary.loss_terms(x_ND, x_ND, fields, state, NOTHING_DEAD).losses
    dictionary.eval()(x_ND)
    after = dictionary.train().loss_terms(x_ND, x_ND, fields, state, NOTHING_DEAD).losses
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
