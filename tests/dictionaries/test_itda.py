"""ITDA: its error, its encoder, what it adds and what it does not, and the way back from a checkpoint."""

import copy
from typing import Any

import pytest
import torch

from saetools.dictionaries.base import make_dictionary
from saetools.dictionaries.itda import ITDA
from saetools.dictionaries.matching_pursuit import MatchingPursuit
from saetools.functional.directions import cosine_N, direction_error
from saetools.kernels import gram

D = 24
WHERE = torch.arange(512).view(256, 2)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def itda(**settings: Any) -> ITDA:
    dictionary = make_dictionary(ITDA.configure(**{"n_features": 60, "k": 4, **settings}), D)
    assert isinstance(dictionary, ITDA)
    return dictionary


def test_error_is_that_of_unit_vectors() -> None:
    x, recon = normal(50, D).double(), normal(50, D, seed=1).double()
    units = x / x.norm(dim=1, keepdim=True) - recon / recon.norm(dim=1, keepdim=True)
    torch.testing.assert_close(direction_error(cosine_N(x, recon), D), units.square().mean(dim=1))
    assert cosine_N(torch.zeros(1, D), torch.zeros(1, D)).item() == 1
    assert cosine_N(torch.ones(1, D), torch.zeros(1, D)).item() == 0


@pytest.mark.parametrize("n_features", [20, 60, 400])
def test_encoder_is_matching_pursuit_by_magnitude(n_features: int) -> None:
    """Atoms that are not in use (of 400, 256 are rows at most) change nothing."""
    dictionary = itda(n_features=n_features)
    dictionary.update(normal(256, D), WHERE, dictionary.initial_state())
    n_used = int(dictionary.n_atoms)
    assert n_used == n_features or (n_features == 400 and 60 < n_used <= 256)
    pursuit = make_dictionary(MatchingPursuit.configure(n_features=n_used, k=4, rule="absolute"), D)
    with torch.no_grad():
        pursuit.W_dec_FD.copy_(dictionary.W_dec_FD[:n_used])
        x = normal(100, D, seed=2)
        code = dictionary.encode(x).to_dense()
        torch.testing.assert_close(code[:, :n_used], pursuit.encode(x).to_dense())
    assert (code < 0).any() and not code[:, n_used:].any()


def test_an_empty_dictionary_codes_nothing() -> None:
    dictionary = itda()
    assert not dictionary.encode(normal(5, D)).values.any()
    assert not dictionary(normal(5, D)).any()


def test_atoms_are_found_where_most_rows_are_single(planted: Any) -> None:
    dictionary = make_dictionary(ITDA.configure(n_features=64, k=4, min_cosine=0.95), planted.D)
    state = dictionary.initial_state()
    for batch in range(8):
        state = dictionary.update(planted.nearly_single(256, batch), WHERE, state).new_state
    assert planted.recovered(dictionary) >= 0.9


def test_no_twins_within_a_batch_and_frequent_directions_first() -> None:
    """Three directions many times over at other lengths and signs, in noise, and one that occurs once."""
    directions = torch.linalg.qr(normal(D, D)).Q[:4]
    times = torch.tensor([40, 160, 55, 1])
    which = torch.repeat_interleave(torch.arange(4), times)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(3))
    x = (directions[which] * (1 + normal(256).abs()[:, None]) * normal(256, seed=5).sign()[:, None])[order]
    x += 0.01 * normal(256, D, seed=4)
    dictionary = itda(min_cosine=0.9)
    dictionary.update(x, WHERE, dictionary.initial_state())
    assert dictionary.n_atoms == 4
    found = (dictionary.W_dec_FD[:4] @ directions.T).abs().argmax(dim=1)
    assert found.tolist() == [1, 2, 0, 3]
    own_rows = x[dictionary.where_F2[:4, 0] // 2]
    torch.testing.assert_close(dictionary.W_dec_FD[:4], torch.nn.functional.normalize(own_rows, dim=1))


def test_what_frequent_directions_explain_together_is_not_added() -> None:
    directions = torch.linalg.qr(normal(D, D)).Q[:2]
    x = torch.cat([directions[:1].expand(100, D), directions[1:].expand(155, D), directions.sum(0, keepdim=True)])
    dictionary = itda(min_cosine=0.9)
    dictionary.update(x, WHERE, dictionary.initial_state())
    assert dictionary.n_atoms == 2


def test_what_was_read_is_explained_to_the_threshold() -> None:
    dictionary = itda(n_features=400, k=3, min_cosine=0.85)
    x = normal(256, D)
    terms = dictionary.update(x, WHERE, dictionary.initial_state())
    n_before = int(dictionary.n_atoms)
    assert not dictionary.full and not terms.code.values.any()
    since_F = terms.new_state.tokens_since_fired_F
    assert not since_F[:n_before].any() and (since_F[n_before:] == 256).all(), "what was added now is not dead"
    assert (cosine_N(x, dictionary(x)) >= 0.85).float().mean() > 0.98
    dictionary.update(x, WHERE, terms.new_state)
    assert dictionary.n_atoms - n_before <= 4, "atoms that were added later may have led pursuit of a few rows astray"


def test_atoms_know_their_rows_and_a_full_dictionary_stays() -> None:
    dictionary = itda(n_features=40)
    x = normal(256, D)
    state = dictionary.update(x, WHERE, dictionary.initial_state()).new_state
    assert dictionary.full and dictionary.where_F2.unique(dim=0).shape == (40, 2)
    rows = dictionary.where_F2[:, 0] // 2
    torch.testing.assert_close(dictionary.W_dec_FD, torch.nn.functional.normalize(x[rows], dim=1))
    before = copy.deepcopy(dictionary.state_dict())
    dictionary.update(normal(256, D, seed=9), WHERE, state)
    assert all(torch.equal(before[name], value) for name, value in dictionary.state_dict().items())


def test_going_on_from_saved_weights_gives_the_same_bits() -> None:
    """The Gram matrix of a loaded dictionary is extended by the blocks of before, to the same bits."""
    straight = itda(n_features=500, min_cosine=0.95)
    state = straight.initial_state()
    for seed in range(6):
        if seed == 3:
            resumed = itda(n_features=500, min_cosine=0.95)
            resumed.load_state_dict(straight.state_dict())
            other = state
        state = straight.update(normal(30, D, seed=seed), WHERE[:30], state).new_state
        if seed >= 3:
            other = resumed.update(normal(30, D, seed=seed), WHERE[:30], other).new_state
    assert torch.equal(straight._gram().matrix(), resumed._gram().matrix())
    assert torch.equal(state.tokens_since_fired_F, other.tokens_since_fired_F)
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in straight.state_dict().items())


@pytest.mark.parametrize("coefficients", ["pursuit", "least_squares"])
def test_the_gram_matrix_is_kept_for_encoding_and_never_beyond_the_bound(
    coefficients: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary, x, extended = itda(n_features=100, coefficients=coefficients), normal(64, D, seed=2), []
    extend = gram.Gram.extend_
    monkeypatch.setattr(gram.Gram, "extend_", lambda self, W: (extended.append(len(W)), extend(self, W))[1])
    dictionary.update(normal(256, D), WHERE, dictionary.initial_state())
    n_extended, n_used = len(extended), int(dictionary.n_atoms)
    codes = [dictionary.encode(x).to_dense() for _ in range(2)]
    assert n_used == 100 and len(dictionary._gram().buffer) == 100
    assert len(extended) == n_extended, "each block is multiplied once"
    monkeypatch.setattr(gram, "GRAM_BYTES", 4 * n_used**2 - 1)
    torch.testing.assert_close(dictionary.encode(x).to_dense(), codes[0])
    dictionary.update(normal(256, D, seed=3), WHERE, dictionary.initial_state())
    assert len(extended) == n_extended and dictionary._extended is None


def test_least_squares_is_orthogonal_pursuit_over_the_atoms_in_use() -> None:
    """Fewer atoms than steps included: the first batch finds 3, the codes have at most 3 features."""
    for n_rows, k in ((256, 4), (3, 4)):
        dictionary = itda(coefficients="least_squares", k=k)
        dictionary.update(normal(n_rows, D), WHERE[:n_rows], dictionary.initial_state())
        n_used = int(dictionary.n_atoms)
        pursuit_config = MatchingPursuit.configure(
            n_features=n_used, k=min(k, n_used), rule="absolute", coefficients="least_squares"
        )
        pursuit = make_dictionary(pursuit_config, D)
        with torch.no_grad():
            pursuit.W_dec_FD.copy_(dictionary.W_dec_FD[:n_used])
            x = normal(100, D, seed=2)
            code = dictionary.encode(x)
            torch.testing.assert_close(code.to_dense()[:, :n_used], pursuit.encode(x).to_dense())
            atoms = dictionary.W_dec_FD[code.indices.long()] * (code.values != 0)[:, :, None]
            assert (atoms @ (x - dictionary.decode(code))[:, :, None]).abs().max() < 1e-4
