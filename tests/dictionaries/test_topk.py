"""TopK: what the contract suite cannot know of it."""

import pytest
import torch

from saetools.dictionaries.base import Progress, make_dictionary
from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError
from saetools.functional.statistics import l0_N


def test_k_above_f_is_refused() -> None:
    with pytest.raises(ConfigError, match="k = 9 is more than n_features = 8"):
        make_dictionary(TopK.configure(n_features=8, k=9), 4)


def test_k_equal_f_is_relu() -> None:
    dictionary, x = make_dictionary(TopK.configure(n_features=8, k=8), 4), torch.randn(30, 4)
    torch.testing.assert_close(dictionary.encode(x).to_dense(), dictionary.pre(x).relu())


def test_twins_tie_and_the_first_wins() -> None:
    dictionary = make_dictionary(TopK.configure(n_features=8, k=1), 4)
    with torch.no_grad():
        dictionary.W_enc_FD.copy_(dictionary.W_enc_FD[:1].clone())
    code = dictionary.encode(dictionary.W_enc_FD[:1].detach())
    assert code.indices.tolist() == [[0]] and code.values.item() > 0


def test_fused_plan_names_what_it_covers() -> None:
    plan = make_dictionary(TopK.configure(n_features=64, k=4), 16).fused_plan()
    assert (plan.selection, plan.k, plan.aux_k, plan.covers) == ("per_row", 4, 8, {"reconstruction", "auxk"})
    without = make_dictionary(TopK.configure(n_features=64, k=4, aux_weight=0), 16).fused_plan()
    assert (without.aux_k, without.covers) == (0, {"reconstruction"})


def test_planted_atoms_are_recovered() -> None:
    """32 random atoms in 16 dimensions, 3 at a time: >= 0.9 of them are found with cosine > 0.9."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(32, 16, generator=generator))
    n, steps = 256, 300
    dictionary = make_dictionary(TopK.configure(n_features=48, k=3), 16)
    dictionary.total_variance.fill_(4.0)
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=2e-2)
    state = dictionary.initial_state()
    for step in range(steps):
        chosen = torch.rand(n, 32, generator=generator).topk(3, dim=1).indices
        x = torch.zeros(n, 32).scatter(1, chosen, 1 + torch.rand(n, 3, generator=generator)) @ atoms
        terms = dictionary.loss_terms(x, x, {}, state, Progress(step, steps, n * steps, 10 * n))
        optimizer.zero_grad()
        (terms.losses["reconstruction"] + terms.losses["auxk"] / 32).backward()
        dictionary.project_gradients_()
        optimizer.step()
        dictionary.constrain_()
        state = terms.new_state
    best = (atoms @ dictionary.directions().T).max(dim=1).values
    assert (best > 0.9).float().mean() >= 0.9
    assert l0_N(terms.code).max() <= 3
