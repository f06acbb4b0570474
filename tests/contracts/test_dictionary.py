"""What holds for every registered kind of dictionary, over all of its example configs."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saetools.activations.calibration import measure
from saetools.atomic import write_tensors
from saetools.dictionaries import auxiliary, base, matching_pursuit
from saetools.dictionaries.base import Dictionary, Progress, State, Terms, available_dictionaries, make_dictionary
from saetools.errors import MismatchError
from saetools.formats.native import load_dictionary, load_unfolded, save_dictionary
from saetools.functional import losses
from saetools.functional.initialise import starting_rows, starting_scale
from saetools.functional.statistics import firing_counts_F, l0_N
from saetools.records import PointSpec
from saetools.safeio import load_safetensors
from saetools.training.optim import Adam
from saetools.training.step import Impl, make_step, trained_parameters

D = 16
SCALE = 0.37
CASES = [
    pytest.param(config, id=f"{cls.kind}-{number}")
    for cls in dict.fromkeys(available_dictionaries().values())
    for number, config in enumerate(cls.examples())
]
pytestmark = pytest.mark.parametrize("config", CASES)


def rows(n: int = 64, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows with E||x||^2 = D around a mean that is not zero."""
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.3


def fields(n: int = 64) -> dict[str, Tensor]:
    """What a stream may carry beside x."""
    return {"grad": rows(n, seed=99)}


def progress(dead_after: int = 1000) -> Progress:
    return Progress(step=50, n_steps=100, n_tokens=6400, dead_after_tokens=dead_after)


def half_dead(dictionary: Dictionary) -> State:
    """A state in which every second feature has not fired for 2000 tokens."""
    state = dictionary.initial_state()
    state.tokens_since_fired_F[::2] = 2000
    return state


def trained(config: Dictionary.Config, dtype: torch.dtype = torch.float64) -> Dictionary:
    """A dictionary in general position: no weight is tied or zero (but atoms not in use), thresholds are learnt."""
    dictionary = make_dictionary(config, D, seed=3).to(dtype)
    if dictionary.trained_by == "construction":
        return constructed(dictionary)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
        dictionary.total_variance.fill_(float(D))
    if dictionary.trained_by == "nothing":
        return dictionary
    dictionary.constrain_()
    if dictionary.trained_by == "gradient":  # on rows that no test encodes: a threshold may equal one of their codes
        dictionary.absorb_(loss(dictionary, dictionary.initial_state(), seed=7).new_state)
    return dictionary


def constructed(dictionary: Dictionary) -> Dictionary:
    """The dictionary after one batch of rows that no other test encodes."""
    dictionary.total_variance.fill_(float(D))
    x = rows(seed=7).to(dictionary.W_dec_FD.dtype)
    dictionary.update(x, torch.arange(128).view(64, 2), dictionary.initial_state())
    return dictionary


def loss(
    dictionary: Dictionary, state: State | None = None, n: int = 64, dead_after: int = 1000, seed: int = 0
) -> Terms:
    x = rows(n, seed).to(dictionary.W_dec_FD.dtype)
    return dictionary.loss_terms(
        x, x, fields(n), half_dead(dictionary) if state is None else state, progress(dead_after)
    )


def total(dictionary: Dictionary, terms: Terms) -> Tensor:
    weights = dictionary.loss_weights(progress())
    return torch.stack([weights[name] * value for name, value in terms.losses.items()]).sum()


def gradients(dictionary: Dictionary, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*dictionary.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(names, parameters, found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in pairs}


def by_gradient(config: Dictionary.Config) -> None:
    if base.dictionary_class(config.kind).trained_by != "gradient":
        pytest.skip("not trained by gradients")


def by_construction(config: Dictionary.Config) -> None:
    if base.dictionary_class(config.kind).trained_by != "construction":
        pytest.skip("not trained by construction")


def test_what_acts_by_the_length_of_the_run_is_named(config: Dictionary.Config) -> None:
    """A run that is made longer says so."""
    by_gradient(config)
    dictionary, x = trained(config), rows()

    def computed(step: int, n_steps: int) -> tuple[dict[str, float], dict[str, float]]:
        now = Progress(step=step, n_steps=n_steps, n_tokens=64 * n_steps, dead_after_tokens=1000)
        terms = dictionary.loss_terms(x, x, fields(), half_dead(dictionary), now)
        return dictionary.loss_weights(now), {name: float(value.detach()) for name, value in terms.losses.items()}

    named = any(getattr(config, name) for name in config.scheduled_by)
    assert named or all(computed(step, 100) == computed(step, 1000) for step in (20, 60))
    assert set(config.scheduled_by) <= set(type(config).model_fields)


def test_shapes(config: Dictionary.Config) -> None:
    dictionary = trained(config)
    code = dictionary.encode(rows())
    assert len(code) == 64 and code.n_features == config.n_features
    assert code.to_dense().shape == (64, config.n_features)
    assert code.indices.dtype == torch.int32
    assert not len(code.indices.flatten()) or 0 <= code.indices.min() <= code.indices.max() < config.n_features
    assert dictionary.decode(code).shape == (64, D)
    assert dictionary.directions().shape == (config.n_features, D)
    assert firing_counts_F(code).sum() > 0, "nothing fires: the other tests would be empty"


def test_each_feature_has_one_slot_per_row(config: Dictionary.Config) -> None:
    rows_M, indices_M, _ = trained(config).encode(rows()).flat()
    places = rows_M * config.n_features + indices_M
    assert len(places.unique()) == len(places)


def test_encode_equals_the_dense_reference(config: Dictionary.Config) -> None:
    dictionary = trained(config)
    fast, plain = dictionary.encode(rows()).to_dense(), dictionary.encode_reference(rows())
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-10)
    if not fast.requires_grad:
        return
    weights = rows(64, seed=5) @ rows(config.n_features, seed=6).T
    expected = gradients(dictionary, (plain * weights).sum())
    for name, gradient in gradients(dictionary, (fast * weights).sum()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_decode_equals_the_dense_product(config: Dictionary.Config) -> None:
    dictionary = trained(config)
    code = dictionary.encode(rows())
    dense = code.to_dense() @ dictionary.W_dec_FD + dictionary.b_dec_D
    torch.testing.assert_close(dictionary.decode(code), dense, rtol=1e-9, atol=1e-10)


def test_sparsity_bound(config: Dictionary.Config) -> None:
    k = getattr(config, "k", None)
    if k is None:
        pytest.skip("this kind has no k")
    dictionary = trained(config)
    l0 = l0_N(loss(dictionary).code if dictionary.trained_by == "gradient" else dictionary.encode(rows()))
    rounding = 2 * config.n_features**0.5 if config.kind == "feature_choice" else 0  # 4 standard deviations of budgets
    assert l0.sum() <= 64 * k + rounding
    if not dictionary.batch_coupled:
        assert l0.max() <= k


def test_every_term_reaches_a_gradient_and_the_sum_is_weighted(config: Dictionary.Config) -> None:
    by_gradient(config)
    dictionary = trained(config)
    terms, weights = loss(dictionary), dictionary.loss_weights(progress())
    assert set(terms.losses) == set(weights), "a term without a weight, or a weight without a term"
    parts = {name: gradients(dictionary, value) for name, value in terms.losses.items()}
    for name, part in parts.items():
        assert any(g.abs().max() > 0 for g in part.values()), f"{name} moves no parameter"
    whole = gradients(dictionary, total(dictionary, terms))
    for parameter, gradient in whole.items():
        expected = sum(weights[name] * part[parameter] for name, part in parts.items())
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_every_parameter_receives_a_gradient(config: Dictionary.Config) -> None:
    by_gradient(config)
    dictionary = trained(config)
    for name, gradient in gradients(dictionary, total(dictionary, loss(dictionary))).items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name


def test_terms_are_means_over_rows_of_the_residual(config: Dictionary.Config) -> None:
    by_gradient(config)
    dictionary, target = trained(config), rows(seed=8)
    terms = dictionary.loss_terms(rows(), target, fields(), half_dead(dictionary), progress())
    expected = terms.residual_ND.square().sum() / 64 / D
    if "reconstruction" in terms.losses:
        torch.testing.assert_close(terms.losses["reconstruction"], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(terms.residual_ND, target - dictionary.decode(terms.code), rtol=1e-9, atol=1e-10)


def test_loss_terms_are_pure(config: Dictionary.Config) -> None:
    by_gradient(config)
    dictionary = trained(config)
    state = half_dead(dictionary)
    weights, counters = copy.deepcopy(dictionary.state_dict()), copy.deepcopy(state.tensors())
    first, second = loss(dictionary, state), loss(dictionary, state)
    assert all(torch.equal(first.losses[name], second.losses[name]) for name in first.losses)
    assert all(torch.equal(weights[name], value) for name, value in dictionary.state_dict().items())
    assert all(torch.equal(counters[name], value) for name, value in state.tensors().items())
    restored = dictionary.initial_state().with_tensors(first.new_state.tensors())
    assert all(torch.equal(value, restored.tensors()[name]) for name, value in first.new_state.tensors().items())


def test_states_survive_a_checkpoint(config: Dictionary.Config, tmp_path: Path) -> None:
    """Every tensor of a state has memory of its own, and comes back bit for bit."""
    by_gradient(config)
    dictionary = trained(config)
    for number, state in enumerate((dictionary.initial_state(), loss(dictionary).new_state)):
        write_tensors(tmp_path / f"{number}", state.tensors())
        restored = dictionary.initial_state().with_tensors(load_safetensors(tmp_path / f"{number}"))
        assert type(restored) is type(state)
        assert all(torch.equal(value, restored.tensors()[name]) for name, value in state.tensors().items())


def test_permuting_rows_permutes_results(config: Dictionary.Config) -> None:
    dictionary = trained(config)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    straight, permuted = (dictionary.encode(x).to_dense() for x in (rows(), rows()[order]))
    torch.testing.assert_close(straight[order], permuted, rtol=1e-9, atol=1e-10)
    if dictionary.batch_coupled or dictionary.trained_by != "gradient":
        return
    x, given = rows()[order], {name: value[order] for name, value in fields().items()}
    terms = dictionary.loss_terms(x, x, given, half_dead(dictionary), progress())
    torch.testing.assert_close(loss(dictionary).code.to_dense()[order], terms.code.to_dense(), rtol=1e-9, atol=1e-10)


def test_negating_features_changes_nothing_where_codes_are_signed(config: Dictionary.Config) -> None:
    dictionary = trained(config)
    sign = torch.where(torch.arange(config.n_features) % 2 == 0, 1.0, -1.0).double()
    straight, code = dictionary(rows()), dictionary.encode(rows()).to_dense()
    with torch.no_grad():
        for name in ("W_dec_FD", "W_enc_FD") if dictionary.has_encoder else ("W_dec_FD",):
            getattr(dictionary, name).mul_(sign[:, None])
        if dictionary.has_encoder:
            dictionary.b_enc_F.mul_(sign)
    same = torch.allclose(dictionary(rows()), straight, rtol=1e-9, atol=1e-10)
    assert same == dictionary.signed
    if dictionary.signed:
        torch.testing.assert_close(dictionary.encode(rows()).to_dense(), code * sign, rtol=1e-9, atol=1e-10)


def test_encoding_in_chunks_changes_nothing(config: Dictionary.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = trained(config)
    whole = dictionary.encode(rows()).to_dense()
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", 7 * config.n_features)
    torch.testing.assert_close(dictionary.encode(rows()).to_dense(), whole, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(config: Dictionary.Config, dtype: torch.dtype) -> None:
    """As `load(..., dtype=...)` gives it: every kind codes and reconstructs, about as well."""
    dictionary = trained(config, torch.float32)
    recon = dictionary(rows())
    dictionary = dictionary.to(dtype)
    code = dictionary.encode(rows())
    assert code.values.dtype == dtype
    assert (dictionary.decode(code) - recon).norm() < 0.2 * recon.norm()


X_ND, PLACES_N2 = rows(dtype=torch.float32), torch.arange(128).view(64, 2)


def learnt(config: Dictionary.Config, impl: Impl) -> list[Tensor]:
    """What a fresh dictionary learns of a few batches, and its codes and reconstructions then."""
    dictionary = make_dictionary(config, D)
    found, x_ND, state = [], X_ND, dictionary.initial_state()
    dictionary.calibrate_(measure(x_ND))
    if dictionary.trained_by == "construction":
        found += dictionary.update(x_ND, PLACES_N2, state).losses.values()
    elif dictionary.trained_by == "gradient":
        optimizer = Adam(trained_parameters(dictionary))
        step = make_step(dictionary, optimizer, 1.0, impl)
        for number in range(3):
            result = step(x_ND, x_ND, {"grad": X_ND.flip(0)}, state, Progress(number, 3, 192, 100), 1e-3)
            state = result.state
            found += [result.loss, result.grad_norm]
        dictionary.absorb_(state)
    with torch.no_grad():
        code = dictionary.encode(x_ND, {"grad": X_ND.flip(0)})
        return [*found, *dictionary.state_dict().values(), code.values, dictionary.decode(code)]


@pytest.mark.parametrize("impl", ["auto", "plain"])
def test_torchs_default_device_is_not_asked_for(config: Dictionary.Config, impl: Impl, tmp_path: Path) -> None:
    """Notebooks set it, too. What lies on the device `meta` has no numbers, so that nothing could be read of it."""
    expected = learnt(config, impl)
    save_dictionary(trained(config), tmp_path / "d", None)
    x_ND = rows()
    recon_ND = load_dictionary(tmp_path / "d")(x_ND)
    with torch.device("meta"):
        found = learnt(config, impl)
        assert torch.equal(load_dictionary(tmp_path / "d")(x_ND), recon_ND)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("impl", ["auto", "plain"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_changes_no_bit(config: Dictionary.Config, impl: Impl, dtype: torch.dtype) -> None:
    """Notebooks set it for the models that they load."""
    expected, before = learnt(config, impl), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = learnt(config, impl)
    finally:
        torch.set_default_dtype(before)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("n", [0, 1])
def test_few_rows(config: Dictionary.Config, n: int) -> None:
    dictionary = trained(config)
    code = dictionary.encode(rows(n))
    assert len(code) == n and code.to_dense().shape == (n, config.n_features)
    assert dictionary(rows(n)).shape == (n, D)
    if dictionary.trained_by == "gradient":
        terms = loss(dictionary, n=n)
        value = total(dictionary, terms)
        assert value.isfinite()
        assert all(g.isfinite().all() for g in gradients(dictionary, value).values())
        assert all(t.isfinite().all() for t in terms.new_state.tensors().values() if t.dtype.is_floating_point)


def test_all_features_dead(config: Dictionary.Config) -> None:
    by_gradient(config)
    dictionary = trained(config)
    value = total(dictionary, loss(dictionary, dead_after=0))
    assert value.isfinite() and all(g.isfinite().all() for g in gradients(dictionary, value).values())


def test_a_latent_without_value_stays_dead(config: Dictionary.Config) -> None:
    """Rows equal to b_dec give pre = 0 everywhere: whatever is selected has value 0, and nothing fires."""
    by_gradient(config)
    dictionary = trained(config)
    with torch.no_grad():
        if dictionary.has_encoder:
            dictionary.b_enc_F.zero_()
    x = dictionary.b_dec_D.detach().expand(8, D)
    state = half_dead(dictionary)
    new = dictionary.loss_terms(x, x, fields(8), state, progress()).new_state
    assert torch.equal(new.tokens_since_fired_F, state.tokens_since_fired_F + 8)


def test_what_fires_is_alive_again(config: Dictionary.Config) -> None:
    by_gradient(config)
    if getattr(config, "sample", "none") != "none":
        pytest.skip("noise lets latents without a mean fire, which do not count: test_variational.py")
    dictionary = trained(config)
    state = half_dead(dictionary)
    terms = loss(dictionary, state)
    fired = firing_counts_F(terms.code) > 0
    assert fired.any()
    assert torch.equal(terms.new_state.tokens_since_fired_F[fired], torch.zeros(int(fired.sum()), dtype=torch.int64))
    assert torch.equal(terms.new_state.tokens_since_fired_F[~fired], state.tokens_since_fired_F[~fired] + 64)


def test_v5_auxiliary_terms_reach_every_row_of_dead_features(
    config: Dictionary.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite differences: a gradient that stops at the decoder (as in EleutherAI/sparsify) fails here."""
    by_gradient(config)
    dictionary = trained(config)
    state = half_dead(dictionary)
    used = {name: torch.ones_like(t) for name, t in state.tensors().items() if name.startswith("density_")}
    state = state.with_tensors(state.tensors() | used)  # the living fire on every row, so that no share asks for more
    terms = loss(dictionary, state).losses
    names = [name for name in terms if "aux" in name]
    if not names:
        pytest.skip("trained without an auxiliary term")
    matrices = ("W_enc_FD", "W_dec_FD") if dictionary.has_encoder else ("W_dec_FD",)
    living = gradients(dictionary, terms[names[0]])
    assert all(living[name][1::2].abs().max() == 0 for name in matrices), "living features must not be touched"
    residual_ND = rows(seed=5)  # a constant of the term, held while weights move, and no zero of a rectifier

    def of_constant(x_ND: Tensor, left_ND: Tensor, *rest: Any) -> Tensor:
        return losses.auxk(residual_ND if x_ND is left_ND else x_ND, residual_ND, *rest)

    for module in (auxiliary, matching_pursuit):
        monkeypatch.setattr(module, "auxk", of_constant)
    found = gradients(dictionary, loss(dictionary, state).losses[names[0]])
    for name in matrices:
        row = int(found[name].abs().sum(1).argmax())
        column = int(found[name][row].abs().argmax())
        h, values = 1e-6, []
        for sign in (1, -1):
            moved = copy.deepcopy(dictionary)
            with torch.no_grad():
                getattr(moved, name)[row, column] += sign * h
            values.append(loss(moved, state).losses[names[0]].item())
        estimate = (values[0] - values[1]) / (2 * h)
        assert estimate == pytest.approx(float(found[name][row, column]), rel=1e-4), name


def test_decode_needs_no_hidden_state(config: Dictionary.Config) -> None:
    dictionary = trained(config)
    code = dictionary.encode(rows())
    fresh = make_dictionary(config, D).to(torch.float64)
    fresh.load_state_dict(dictionary.state_dict())
    dictionary.encode(rows(seed=8))
    assert torch.equal(fresh.decode(code), dictionary.decode(code))


def test_save_and_load_are_bit_equal(config: Dictionary.Config, tmp_path: Path) -> None:
    dictionary = trained(config, torch.float32)
    save_dictionary(dictionary, tmp_path / "saved", spec=None, scale=SCALE, provenance={"n_tokens": 64})
    loaded, record = load_unfolded(tmp_path / "saved")
    assert record.scale == SCALE and loaded.config == config and loaded.provenance == {"n_tokens": 64}
    for name, tensor in dictionary.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and loaded.state_dict()[name].dtype == tensor.dtype
    if dictionary.trained_by != "nothing":  # atoms are unit vectors (or not in use) after loading too
        norms_F = loaded.directions().norm(dim=1)
        torch.testing.assert_close(norms_F[norms_F > 0], torch.ones_like(norms_F[norms_F > 0]))
    save_dictionary(loaded, tmp_path / "again", spec=None, scale=SCALE, provenance={"n_tokens": 64})
    for file in (tmp_path / "saved").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_copies_are_equal(config: Dictionary.Config, tmp_path: Path) -> None:
    """Worker processes and torch.save pickle a dictionary; a loaded one also holds what was saved beside it."""
    dictionary = trained(config)
    spec = PointSpec(host="toy", point="p", d_model=D)
    save_dictionary(dictionary, tmp_path / "d", spec, None, {"n_tokens": 5})
    loaded = load_dictionary(tmp_path / "d")
    for copied in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        assert copied.config == loaded.config and copied.spec == spec and copied.provenance == loaded.provenance
        assert copied.encode(rows()).to_dense().equal(loaded.encode(rows()).to_dense())


def test_folding_the_scale_changes_nothing(config: Dictionary.Config, tmp_path: Path) -> None:
    dictionary = trained(config, torch.float32)
    save_dictionary(dictionary, tmp_path / "saved", spec=None, scale=SCALE)
    folded = load_dictionary(tmp_path / "saved")
    raw = rows(dtype=torch.float32) / SCALE
    expected = dictionary.encode(raw * SCALE).to_dense() / SCALE
    scale = expected.abs().max().item()
    torch.testing.assert_close(folded.encode(raw).to_dense(), expected, rtol=5e-5, atol=5e-5 * scale)
    torch.testing.assert_close(
        folded(raw), dictionary(raw * SCALE) / SCALE, rtol=1e-5, atol=1e-5 * float(raw.abs().max())
    )


def test_constraints(config: Dictionary.Config) -> None:
    dictionary = trained(config)
    norms_F = dictionary.W_dec_FD.norm(dim=1)
    if dictionary.trained_by == "nothing":
        pytest.skip("atoms of its own are given, and not constrained")
    if dictionary.trained_by == "construction":  # atoms not in use are zero
        norms_F = norms_F[: int((norms_F > 0).sum())]
    torch.testing.assert_close(norms_F, torch.ones_like(norms_F))
    if dictionary.trained_by == "gradient":
        total(dictionary, loss(dictionary)).backward()
        dictionary.project_gradients_()
        along = (dictionary.W_dec_FD.grad * dictionary.W_dec_FD).sum(1)
        assert along.abs().max() < 1e-12


def test_construction_lowers_the_error_of_what_it_reads(config: Dictionary.Config) -> None:
    """Energy: no row gets longer by its residual, and the losses told before a batch are worse than after it."""
    by_construction(config)
    dictionary = make_dictionary(config, D).double()
    state, where = dictionary.initial_state(), torch.arange(128).view(64, 2)
    first = dictionary.update(rows(), where, state)
    assert torch.equal(first.residual_ND, rows()), "an empty dictionary explains nothing"
    second = dictionary.update(rows(), where, first.new_state)
    assert (second.residual_ND.square().sum(1) <= rows().square().sum(1) + 1e-12).all()
    assert all(second.losses[name] < 0.6 * first.losses[name] for name in first.losses)
    torch.testing.assert_close(second.residual_ND.square().sum() / 64, second.losses["reconstruction"])


def test_construction_ends_where_it_is_full(config: Dictionary.Config) -> None:
    by_construction(config)
    dictionary = make_dictionary(config, D).double()
    state = dictionary.initial_state()
    for seed in range(20):
        before = dictionary.W_dec_FD.clone()
        ended = dictionary.full
        state = dictionary.update(rows(seed=seed), torch.arange(128).view(64, 2), state).new_state
        assert torch.equal(before, dictionary.W_dec_FD) or not ended
    assert dictionary.full and (dictionary.W_dec_FD.norm(dim=1) > 0.99).all()


def test_a_few_steps_lower_the_loss(config: Dictionary.Config) -> None:
    by_gradient(config)
    dictionary = make_dictionary(config, D, seed=1)
    dictionary.total_variance.fill_(float(D))
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=3e-3)
    state, errors, x = dictionary.initial_state(), [], rows(256, dtype=torch.float32)
    for step in range(60):
        terms = dictionary.loss_terms(
            x, x, {"grad": rows(256, 9, torch.float32)}, state, Progress(step, 60, 60 * 256, 2000)
        )
        weights = dictionary.loss_weights(Progress(step, 60, 60 * 256, 2000))
        optimizer.zero_grad()
        torch.stack([weights[name] * value for name, value in terms.losses.items()]).sum().backward()
        dictionary.project_gradients_()
        optimizer.step()
        dictionary.constrain_()
        state = terms.new_state
        errors.append(float(terms.residual_ND.detach().square().sum()))
    assert errors[-1] < 0.9 * errors[0]


def test_wrong_width_is_named(config: Dictionary.Config) -> None:
    dictionary = trained(config)
    for wrong in (torch.zeros(3, D + 1), torch.zeros(D), torch.zeros(2, 3, D)):
        with pytest.raises(MismatchError, match=r"takes \[N, 16\]"):
            dictionary.encode(wrong)
    assert dictionary(torch.zeros(2, 3, D)).shape == (2, 3, D)


def test_whole_numbers_are_refused(config: Dictionary.Config) -> None:
    """Their reconstruction, of their dtype, would be cut to whole numbers."""
    with pytest.raises(MismatchError, match=r"floating-point numbers, got torch\.int64"):
        trained(config)(torch.ones(3, D, dtype=torch.int64))


def test_description(config: Dictionary.Config) -> None:
    """Escaped, of at most 20 KB, and writable as UTF-8, whatever a file says of host, point and training."""
    dictionary = trained(config)
    for hostile in ("<script>'\"&", "\U0001f525", "\ud800", "\u202e\0\n"):
        long = hostile * 20_000
        dictionary.spec = PointSpec(host=long, point=long, d_model=D)
        dictionary.provenance = {f"{n}{long}": long for n in range(100)}
        page = dictionary._repr_html_()
        assert dictionary.kind in page and "<script>" not in page and len(page.encode()) <= 20_000
        assert "'\"" not in page and page.startswith("<table>") and page.endswith("</table>")
        assert f"kind={dictionary.kind}" in repr(dictionary) and len(repr(dictionary).encode()) <= 40_000


def test_config_survives_json(config: Dictionary.Config) -> None:
    again = type(config).model_validate_json(config.model_dump_json())
    assert again == config
    assert all(field.description for field in type(config).model_fields.values())


def test_training_begins_with_reconstructions_of_the_right_size(config: Dictionary.Config) -> None:
    """The factor that would bring the first reconstruction closest to its rows is 1, once the encoder is scaled."""
    by_gradient(config)
    dictionary = make_dictionary(config, D)
    if not dictionary.has_encoder:
        pytest.skip("has no encoder to scale")
    dictionary.calibrate_(measure(rows() + 3))
    x_ND = starting_rows(D)
    recon_ND = dictionary.starting_recon(x_ND + dictionary.b_dec_D) - dictionary.b_dec_D
    assert starting_scale(x_ND, recon_ND.detach()) == pytest.approx(1, abs=0.3)
