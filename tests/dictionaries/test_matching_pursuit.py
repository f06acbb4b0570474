"""Matching pursuit: identities of the method, and its agreement with TopK where both are the same."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from saetools.dictionaries.base import Progress, make_dictionary
from saetools.dictionaries.matching_pursuit import MatchingPursuit
from saetools.dictionaries.topk import TopK
from saetools.errors import ConfigError
from saetools.functional.statistics import l0_N

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_orthonormal_square_dictionary() -> None:
    """Exact with the absolute rule; exactly the positive part with the nonnegative one."""
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    for rule in ("absolute", "nonnegative"):
        dictionary = make_dictionary(MatchingPursuit.configure(n_features=6, k=6, rule=rule), 6).double()
        with torch.no_grad():
            dictionary.W_dec_FD.copy_(basis)
        code = X @ basis.T
        expected = (code if rule == "absolute" else code.relu()) @ basis
        torch.testing.assert_close(dictionary(X), expected)


def test_one_step_is_tied_top_1() -> None:
    pursuit = make_dictionary(MatchingPursuit.configure(n_features=20, k=1), 6).double()
    topk = make_dictionary(TopK.configure(n_features=20, k=1), 6).double()
    torch.testing.assert_close(pursuit.encode(X).to_dense(), topk.encode(X).to_dense())


@pytest.mark.parametrize("rule", ["nonnegative", "signed", "absolute"])
def test_energy_falls_step_by_step_by_the_squares_of_the_values(rule: str) -> None:
    norms = []
    for k in range(1, 8):
        dictionary = make_dictionary(MatchingPursuit.configure(n_features=20, k=k, rule=rule), 6).double()
        dictionary.constrain_()  # unit atoms in float64 too
        norms.append((X - dictionary(X)).square().sum(1))
    assert all((later <= earlier + 1e-12).all() for earlier, later in pairwise(norms))
    one = make_dictionary(MatchingPursuit.configure(n_features=20, k=1, rule=rule), 6).double()
    one.constrain_()
    torch.testing.assert_close(norms[0], X.square().sum(1) - one.encode(X).values[:, 0].square())


def test_more_steps_at_inference_reconstruct_better_and_atoms_are_found(planted: Any) -> None:
    dictionary = make_dictionary(MatchingPursuit.configure(n_features=48, k=3), planted.D)
    planted.train(dictionary)
    assert planted.recovered(dictionary) >= 0.75
    x, errors = planted.rows(500, seed=-1), []
    for steps in (1, 3, 6):
        config = dictionary.config.model_copy(update={"inference_steps": steps})
        longer = make_dictionary(config, planted.D)
        longer.load_state_dict(dictionary.state_dict())
        errors.append((x - longer(x)).square().sum().item())
        assert l0_N(longer.encode(x)).max() <= steps
    assert errors[0] > errors[1] > errors[2]


def test_training_keeps_no_graph_of_codes_that_losses_do_not_use() -> None:
    dictionary = make_dictionary(MatchingPursuit.configure(n_features=20, k=4), 6).double()
    terms = dictionary.loss_terms(X, X, {}, dictionary.initial_state(), Progress(0, 10, 1000, 500))
    assert not terms.code.values.requires_grad and dictionary.encode(X).values.requires_grad
    assert torch.equal(terms.code.values, dictionary.encode(X).values)


def test_dead_atoms_learn_from_the_residual() -> None:
    dictionary = make_dictionary(MatchingPursuit.configure(n_features=20, k=1), 6).double()
    state = dictionary.initial_state()
    state.tokens_since_fired_F[3] = 1000
    terms = dictionary.loss_terms(X, X, {}, state, Progress(0, 10, 1000, 500))
    (gradient,) = torch.autograd.grad(terms.losses["residual_auxk"], [dictionary.W_dec_FD])
    assert gradient[3].any() and not gradient[torch.arange(20) != 3].any()


def test_least_squares_leaves_a_residual_orthogonal_to_every_chosen_atom() -> None:
    settings = {"n_features": 20, "k": 4, "rule": "absolute"}
    pursuit = make_dictionary(MatchingPursuit.configure(**settings), 6).double()
    fitted = make_dictionary(MatchingPursuit.configure(**settings, coefficients="least_squares"), 6).double()
    code = fitted.encode(X)
    atoms = fitted.directions()[code.indices.long()]
    left = X - fitted.decode(code)
    assert (atoms @ left[:, :, None]).abs().max() < 1e-9
    assert left.square().sum() < 0.5 * (X - pursuit(X)).square().sum()
    first = (pursuit.directions()[pursuit.encode(X).indices[:, 0].long()] * (X - pursuit(X))).sum(1)
    assert first.abs().max() > 1e-3, "plain pursuit forgets the first atom: the test could not fail"


@pytest.mark.parametrize("coefficients", ["pursuit", "least_squares"])
def test_inference_takes_as_many_steps_as_a_row_needs(planted: Any, coefficients: str) -> None:
    config = MatchingPursuit.configure(n_features=planted.N_ATOMS, k=2, rule="absolute", coefficients=coefficients)
    dictionary = make_dictionary(config, planted.D)
    with torch.no_grad():
        dictionary.W_dec_FD.copy_(planted.atoms)
    dictionary.total_variance.fill_(4.0)
    x = planted.rows(300, seed=3) * torch.linspace(0.05, 1, 300)[:, None]
    adaptive = dictionary.with_inference(150 if coefficients == "pursuit" else 30, tolerance=0.1)
    code = adaptive.encode(x)
    n_atoms, left = l0_N(code), (x - adaptive(x)).norm(dim=1)
    assert code.values.numel() == n_atoms.sum(), "ragged: no slot that is not used"
    assert 5 * n_atoms[:15].sum() < n_atoms[-15:].sum()
    assert left.max() <= 0.1 * 2.0 + 1e-6
    assert l0_N(dictionary.encode(x)).max() <= 2 and dictionary.config.inference_steps is None
    assert adaptive.W_dec_FD is dictionary.W_dec_FD


def test_what_least_squares_has_no_meaning_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="rule signed has no meaning"):
        make_dictionary(MatchingPursuit.configure(n_features=20, k=4, rule="signed", coefficients="least_squares"), 6)
    fitted = make_dictionary(MatchingPursuit.configure(n_features=20, k=4, coefficients="least_squares"), 6)
    with pytest.raises(ConfigError, match="inference_steps = 21"):
        fitted.with_inference(21)
    for steps, tolerance in ((0, 0.0), (3, -1.0)):
        with pytest.raises(ValueError, match="greater than"):
            fitted.with_inference(steps, tolerance)
