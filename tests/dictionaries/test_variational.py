"""Variational: its control is TopK; KL as torch computes it; noise from (seed, step) alone."""

import math

import pytest
import torch

from saetools.dictionaries.base import Dictionary, Progress, Terms, make_dictionary
from saetools.dictionaries.topk import TopK
from saetools.dictionaries.variational import LOGVAR_START, Variational

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))


def terms_of(dictionary: Dictionary, step: int = 0) -> Terms:
    return dictionary.loss_terms(X, X, {}, dictionary.initial_state(), Progress(step, 10, 1000, 0))


def test_without_noise_and_prior_it_is_topk_bit_for_bit() -> None:
    ours = make_dictionary(Variational.configure(n_features=20, k=3, sample="none", beta=0), 6)
    theirs = make_dictionary(TopK.configure(n_features=20, k=3), 6)
    for dictionary in (ours, theirs):
        optimizer = torch.optim.Adam(dictionary.parameters(), lr=1e-2)
        for step in range(20):
            terms = terms_of(dictionary, step)
            weights = dictionary.loss_weights(Progress(step, 20, 1000, 0))
            torch.stack([weights[name] * loss for name, loss in terms.losses.items()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("scope", ["all", "selected"])
def test_kl(scope: str) -> None:
    dictionary = make_dictionary(Variational.configure(n_features=20, k=3, sample="learned", kl_scope=scope), 6)
    dictionary.total_variance.fill_(4.0)
    with torch.no_grad():
        dictionary.W_var_FD.normal_(generator=torch.Generator().manual_seed(1))
    terms = terms_of(dictionary)
    logvar = (X @ dictionary.W_var_FD.T + dictionary.b_var_F).clamp(-6, 2)
    posterior = torch.distributions.Normal(dictionary.pre(X).relu() / 2, (logvar / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    if scope == "selected":
        kl = kl * (terms.code.to_dense() != 0)
    torch.testing.assert_close(terms.losses["kl"], kl.sum(1).mean())


def test_noise_depends_on_the_step_alone_and_inference_has_none() -> None:
    dictionary = make_dictionary(Variational.configure(n_features=20, k=3, sample="fixed"), 6)
    first, again, later = terms_of(dictionary, 0), terms_of(dictionary, 0), terms_of(dictionary, 1)
    assert torch.equal(first.code.values, again.code.values)
    assert not torch.equal(first.code.values, later.code.values)
    topk = make_dictionary(TopK.configure(n_features=20, k=3), 6)
    assert torch.equal(dictionary.encode(X).values, topk.encode(X).values)


def test_the_size_of_the_noise() -> None:
    """In sqrt(V), and exp(logvar / 2) where it is learned."""
    values = []
    for sample, variance in (("fixed", 1.0), ("fixed", 4.0), ("learned", 1.0)):
        dictionary = make_dictionary(Variational.configure(n_features=20, k=3, sample=sample), 6)
        dictionary.total_variance.fill_(variance)
        dictionary.W_enc_FD.data.zero_()
        values.append(terms_of(dictionary).code.values)
    torch.testing.assert_close(values[1], 2 * values[0])
    torch.testing.assert_close(values[2], math.exp(LOGVAR_START / 2) * values[0])


@pytest.mark.parametrize("sample", ["fixed", "learned"])
def test_latents_without_a_mean_die_whatever_the_noise(sample: str) -> None:
    dictionary = make_dictionary(Variational.configure(n_features=20, k=3, sample=sample), 6)
    with torch.no_grad():
        dictionary.b_enc_F[10:] = -1000
    terms = terms_of(dictionary)
    assert (terms.code.indices >= 10).any(), "noise lets them fire"
    since_F = terms.new_state.tokens_since_fired_F
    assert (since_F[10:] == len(X)).all() and (since_F[:10] == 0).any()


def test_log_variances_survive_folding() -> None:
    dictionary = make_dictionary(Variational.configure(n_features=20, k=3, sample="learned"), 6).double()
    with torch.no_grad():
        dictionary.W_var_FD.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
        dictionary.b_dec_D.fill_(0.3)
    x = X.double()
    before = dictionary._logvar(x)
    dictionary.fold_scale_(0.5)
    torch.testing.assert_close(dictionary._logvar(x / 0.5), before)
