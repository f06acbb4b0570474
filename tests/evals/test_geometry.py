"""Geometry of dictionaries whose angles are known."""

import numpy as np
import pytest
import torch
from small_hosts import Given, by_name, row_subject, scaled_copy

from saetools.dictionaries.base import SparseCode
from saetools.dictionaries.itda import ITDA
from saetools.dictionaries.topk import TopK
from saetools.evals.bootstrap import median_interval
from saetools.evals.geometry import Geometry, _chunks
from saetools.evals.reconstruction import Reconstruction
from saetools.evals.run import run_evaluations
from saetools.evals.sample import TokenSample
from saetools.functional.geometry import co_firing_cosines


def figures(dictionary, x_ND, n_tokens=10_000, **source):
    return by_name(Geometry(n_tokens=n_tokens, pair_share=1).run(row_subject(dictionary, x_ND, **source)))


def test_signed_basis(gaussian):
    """Atoms +-e_i: opposite atoms have |cos| 1 and never fire together, all other pairs are orthogonal."""
    found = figures(scaled_copy(5, 1.0), gaussian)
    assert found["coherence"].value == pytest.approx(1)
    assert found["near_duplicates"].value == 1
    assert found["encoder_decoder_cosine"].value == pytest.approx(1)
    assert found["mean_cosine"].value == pytest.approx(10 / 90)
    n_F = (scaled_copy(5, 1.0).encode(gaussian).to_dense() != 0).sum(0).double()
    pairs = n_F.sum() ** 2 - n_F.square().sum()
    assert found["independent_cosine"].value == pytest.approx(float(2 * n_F[:5] @ n_F[5:] / pairs), rel=1e-6)
    assert found["co_firing_cosine"].value == pytest.approx(0, abs=1e-7)
    assert found["next_atom_cosine"].value == pytest.approx(0, abs=1e-7)
    assert found["epsilon_lbo"].value == pytest.approx(0, abs=1e-7)  # Parseval: ||f|| = ||z||
    assert found["feature_norm_ratio"].value == pytest.approx(1, abs=1e-6)


def test_norms_follow_the_definition(gaussian):
    dictionary = TopK(TopK.configure(n_features=12, k=3), 5)
    with torch.no_grad():
        dictionary.W_dec_FD.mul_(torch.rand(12, 1) + 0.5)
        dictionary.b_dec_D.fill_(0.3)
    found = figures(dictionary, gaussian)
    unit_FD = torch.nn.functional.normalize(dictionary.directions(), dim=1)
    nearest_F = ((unit_FD @ unit_FD.T).abs() - 2 * torch.eye(12)).amax(1)
    assert ((nearest_F > 0.7) & (nearest_F < 0.9)).any()
    assert found["near_duplicates"].value == pytest.approx(float((nearest_F > 0.9).double().mean()))
    code = dictionary.encode(gaussian).to_dense().detach().double()
    f = (code * dictionary.W_dec_FD.detach().double().norm(dim=1)).square().sum(1)
    z = (gaussian - 0.3).double().square().sum(1)
    assert found["epsilon_lbo"].value == pytest.approx(float(np.median(((z - f).abs() / (11 * f))[f > 0])), rel=1e-5)
    assert found["feature_norm_ratio"].value == pytest.approx(float(np.median((f / z).sqrt())), rel=1e-5)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {"epsilon_lbo": ((z - f).abs() / (11 * f)).numpy(), "feature_norm_ratio": (f / z).sqrt().numpy()}
    for name, of_rows in values.items():
        low, high = found[name].spread
        assert low < found[name].value < high < 1.5 * low, name
        assert (low, high) == pytest.approx(median_interval(of_rows, np.arange(1000) // 16, 0), rel=1e-5), name


def test_independent_firing_gives_the_chance_level():
    """Codes drawn independently by frequency: the cosine of pairs that fire together is the independent one."""
    generator = np.random.default_rng(0)
    rate = np.geomspace(0.05, 0.5, 8)
    code = torch.from_numpy((generator.random((40_000, 8)) < rate) * 1.0).float()

    dictionary = Given(code, torch.randn(8, 2))
    rows = torch.stack([torch.arange(40_000.0), torch.ones(40_000)], 1)
    found = figures(dictionary, rows, n_tokens=40_000, batch=4096)
    assert found["encoder_decoder_cosine"].value is None
    # tokens are averaged, not pairs, so the two agree only up to how pairs spread over tokens
    assert found["co_firing_cosine"].value == pytest.approx(found["independent_cosine"].value, rel=0.05)


def test_batches_do_not_matter(gaussian):
    dictionary = TopK(TopK.configure(n_features=12, k=3), 5)
    base = figures(dictionary, gaussian, batch=1000)
    for name, record in figures(dictionary, gaussian, batch=13).items():
        assert record.value == pytest.approx(base[name].value, rel=1e-6), name


def test_rows_are_worked_on_in_chunks_whose_cosines_fit(monkeypatch):
    seen = []

    def watched(values_NK, indices_NK, atoms_FD):
        seen.append(8 * len(values_NK) * values_NK.shape[1] ** 2)
        return co_firing_cosines(values_NK, indices_NK, atoms_FD)

    monkeypatch.setattr("saetools.evals.geometry.co_firing_cosines", watched)
    monkeypatch.setattr("saetools.evals.geometry.BLOCK_BYTES", 1 << 20)
    figures(Given(torch.rand(20, 200), torch.randn(200, 2)), torch.arange(20.0)[:, None].repeat(1, 2), batch=20)
    assert max(seen) <= 1 << 20 and len(seen) > 5


def test_sample_is_uniform_and_independent_of_order():
    where = torch.stack([torch.arange(10_000) // 50, torch.arange(10_000) % 50], 1)
    values = torch.arange(10_000.0)[:, None]
    forwards, backwards = TokenSample(1, 0, size=500), TokenSample(1, 0, size=500)
    for part in range(0, 10_000, 900):
        forwards.add(where[part : part + 900], values[part : part + 900])
    backwards.add(where.flip(0), values.flip(0))
    np.testing.assert_array_equal(forwards.columns(), backwards.columns())
    assert forwards.columns()[:, 0].mean() == pytest.approx(5000, rel=0.06)
    assert forwards.quantiles(0, (0.5,))[0] == pytest.approx(5000, rel=0.1)


def test_places_without_an_atom_take_no_part():
    """Three atoms, two of them twins, in eight places."""
    dictionary = ITDA(ITDA.configure(n_features=8, k=1), 2)
    with torch.no_grad():
        dictionary.W_dec_FD[:3] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        dictionary.n_atoms.fill_(3)
    found = by_name(Geometry().run(row_subject(dictionary, torch.randn(50, 2))))
    assert found["near_duplicates"].value == pytest.approx(2 / 3) and found["near_duplicates"].n == 3
    assert found["mean_cosine"].value == pytest.approx(1 / 3)
    assert found["independent_cosine"].n == 50, "firing is counted in all rows, not in those alone that are drawn"
    x = torch.randn(50, 2)
    z, f = x.double().square().sum(1), dictionary.encode(x).to_dense().double().square().sum(1)
    bound = np.median(((z - f).abs() / (2 * f)).detach())
    assert figures(dictionary, x)["epsilon_lbo"].value == pytest.approx(bound, rel=1e-5), "three atoms, not eight"


def test_a_zero_atom_has_no_cosine_with_its_encoder(gaussian):
    dictionary = TopK(TopK.configure(n_features=8, k=3), 5)  # whose encoder rows are its atoms
    with torch.no_grad():
        dictionary.W_dec_FD[3] = 0
    found = figures(dictionary, gaussian)["encoder_decoder_cosine"]
    assert (found.value, found.n) == (pytest.approx(1), 7)


def test_norms_are_of_the_tokens_where_they_are_defined(gaussian):
    dictionary = TopK(TopK.configure(n_features=8, k=3), 5)
    with torch.no_grad():
        dictionary.b_enc_F.fill_(-4.0)
    n_fire = int((dictionary.encode(gaussian).to_dense() != 0).any(1).sum())
    found = figures(dictionary, gaussian)
    assert 0 < n_fire < 1000
    assert (found["epsilon_lbo"].n, found["feature_norm_ratio"].n) == (n_fire, 1000)


def test_one_full_row_does_not_make_the_others_wide():
    width_N = torch.tensor([1, 3, 400, 2, 0, 3])
    values_NK = (torch.arange(400) < width_N[:, None]).float()
    code = SparseCode(values_NK, torch.zeros(6, 400, dtype=torch.int32), 500)
    blocks = list(_chunks(code, d_model=8))
    assert sorted(torch.cat([rows for rows, _ in blocks]).tolist()) == list(range(6)), "each row once"
    for rows, part in blocks:
        assert torch.equal(part.values, values_NK[rows, : part.values.shape[1]])
        assert part.values.shape[1] == width_N[rows].max()
    wide_rows = [part.values.shape for _, part in _chunks(SparseCode(values_NK, code.indices, 500), d_model=10**7)]
    assert wide_rows == [(1, 400), (1, 3), (1, 3), (1, 2), (1, 1), (1, 1)]


def test_one_atom_has_no_angles(gaussian):
    subject = row_subject(TopK(TopK.configure(n_features=1, k=1), 5), gaussian)
    geometry, fvu = run_evaluations(subject, [Geometry(), Reconstruction()])[:2]
    assert geometry.value is None and "need two atoms" in geometry.note
    assert fvu.name == "fvu" and fvu.value is not None
