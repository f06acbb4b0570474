"""From config to rows: every source, its calibration, what is refused; and a real transformer's rows both ways."""

import pytest
import torch
from safetensors.torch import save_file

from saetools.activations.calibration import calibrate
from saetools.activations.harvest import harvest_points
from saetools.activations.live import LiveSource
from saetools.activations.prefetch import PrefetchedSource
from saetools.activations.rows import RowsSource
from saetools.activations.sources import make_source
from saetools.activations.store import CachedSource
from saetools.config import ActivationsConfig, HostConfig
from saetools.errors import ConfigError, DataError, MismatchError
from saetools.text.packing import TokenPlan


def config(**settings):
    return ActivationsConfig(**({"point": "mixed", "calibration_rows": 100} | settings))


def test_live_calibrates_itself_on_the_train_split(host, make_plan):
    expected = calibrate(LiveSource(host, make_plan(), "mixed", "float32"), 100)
    assert make_source(config(), "train", host, make_plan()).calibration == expected
    heldout = make_source(config(), "heldout", host, make_plan("heldout"))
    assert heldout.calibration == expected
    given = expected.model_copy(update={"median_norm": 1e9})
    assert make_source(config(), "train", host, make_plan(), given).calibration == given


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("gradients", [False, True])
def test_live_and_cached_are_the_same_stream(tmp_path, host, make_plan, same, gradients, dtype):
    common = {"gradients": gradients, "dtype": dtype}
    path = harvest_points(host, make_plan(), ["mixed"], config(**common), tmp_path, 10**9)["mixed"]
    live = make_source(config(**common), "train", host, make_plan())
    for extra in ({}, {"prefetch": 2}):
        cached = make_source(config(source="cached", path=path, **common, **extra), "train", host, make_plan())
        assert cached.calibration == live.calibration
        assert cached.fingerprint() == live.fingerprint()
        stream = cached.batches()
        for _, (n, a), (m, b) in zip(range(15), stream, live.batches(), strict=False):
            assert n == m
            assert same(a, b)
            assert set(a.fields) == ({"grad"} if gradients else set())
        stream.close()
    assert isinstance(cached, PrefetchedSource)


def test_a_host_is_the_same_wherever_it_lies(tmp_path, host, make_plan):
    """Its weights' revision decides; a host without one is known by its name alone."""
    path = harvest_points(host, make_plan(), ["mixed"], config(), tmp_path, 10**9)["mixed"]
    before = make_source(config(source="cached", path=path), "train", host, make_plan()).fingerprint()
    host.name = "/mnt/other/fake"
    settings = config(source="cached", path=path)
    assert make_source(settings, "train", host, make_plan()).fingerprint() == before
    assert make_source(config(), "train", host, make_plan()).fingerprint() == before
    harvest_points(host, make_plan(), ["mixed"], config(), tmp_path, 10**9)  # which is done already
    spec = host.spec("mixed")
    assert spec.identity == spec.model_copy(update={"host": "fake"}).identity
    unknown = spec.model_copy(update={"revision": None})
    assert unknown.identity != unknown.model_copy(update={"host": "fake"}).identity
    host.spec = lambda point, context_tokens=None: spec.model_copy(
        update={"revision": "r1", "context_tokens": context_tokens}
    )
    with pytest.raises(MismatchError, match="revision is 'r0', the run has 'r1'"):
        make_source(settings, "train", host, make_plan())


def test_a_store_with_gradients_serves_runs_without(tmp_path, host, make_plan, same):
    path = harvest_points(host, make_plan(), ["mixed"], config(gradients=True), tmp_path, 10**9)["mixed"]
    without = make_source(config(source="cached", path=path), "train", host, make_plan())
    live = make_source(config(), "train", host, make_plan())
    assert (without.calibration, without.fingerprint()) == (live.calibration, live.fingerprint())
    assert live.calibration.gradient_rms is None
    for _, (_, a), (_, b) in zip(range(10), without.batches(), live.batches(), strict=False):
        assert same(a, b)


def test_gradients_of_a_store_without_are_refused(tmp_path, host, make_plan):
    path = harvest_points(host, make_plan(), ["mixed"], config(), tmp_path, 50)["mixed"]
    with pytest.raises(MismatchError, match="no gradients"):
        make_source(config(source="cached", path=path, gradients=True), "train")
    with pytest.raises(MismatchError, match="field_shapes"):
        harvest_points(host, make_plan(), ["mixed"], config(gradients=True), tmp_path, 50)


def test_gradients_belong_to_their_rows_and_have_a_scale(host, make_plan):
    source = make_source(config(gradients=True, drop_outliers=False), "train", host, make_plan())
    plan, measured = make_plan(), []
    for tokens, (_, rows) in zip(plan.batches(), source.batches(), strict=False):
        ids_BT, keep_BT = torch.from_numpy(tokens.ids_BT), torch.from_numpy(tokens.keep_BT)
        x_BTD, g_BTD = host.activations_and_gradients(ids_BT, ["mixed"], keep_BT)["mixed"]
        assert torch.equal(rows.x_ND, x_BTD[keep_BT]) and torch.equal(rows.fields["grad"], g_BTD[keep_BT])
        for b in range(len(ids_BT)):  # a window alone has the gradients that it has beside others
            alone = host.activations_and_gradients(ids_BT[b : b + 1], ["mixed"], keep_BT[b : b + 1])["mixed"][1][0]
            assert torch.allclose(alone, g_BTD[b], rtol=1e-4, atol=1e-5)
        measured.append(rows.fields["grad"])
        if sum(map(len, measured)) >= 100:
            break
    expected = torch.cat(measured)[:100].double().square().mean().sqrt()
    assert source.calibration.gradient_rms == pytest.approx(float(expected), rel=1e-12)


def test_gradients_that_are_not_finite_are_named(host, make_plan):
    host.mix[0, 0] = torch.inf
    host.activations = lambda ids_BT, points: dict.fromkeys(points, host.embedding[ids_BT])
    with pytest.raises(DataError, match="The gradients of document"):
        next(LiveSource(host, make_plan(), "embed", "float32", gradients=True).batches())


def test_a_store_of_something_else_is_refused(tmp_path, host, make_plan):
    path = harvest_points(host, make_plan(), ["mixed"], config(), tmp_path, 50)["mixed"]
    cached = {"source": "cached", "path": path}
    make_source(config(**cached), "train")
    for wrong, word in (
        (config(**cached, point="embed"), "point"),
        (config(**cached, dtype="bfloat16"), "dtype"),
        (config(**cached, drop_outliers=False), "drop_outliers"),
        (config(**cached, calibration_rows=99), "calibration_rows"),
    ):
        with pytest.raises(MismatchError, match=word):
            make_source(wrong, "train")
    with pytest.raises(MismatchError, match="split"):
        make_source(config(**cached), "heldout")
    with pytest.raises(MismatchError, match="corpus"):
        make_source(config(**cached), "train", host, make_plan(salt=1))
    with pytest.raises(MismatchError, match="calibration"):
        other = CachedSource(path).calibration.model_copy(update={"scale": 2.0})
        make_source(config(**cached), "train", calibration=other)


def test_rows_need_nothing_but_their_file(tmp_path):
    save_file({"x": torch.randn(200, 4)}, tmp_path / "rows.safetensors")
    settings = config(source="rows", path=tmp_path / "rows.safetensors")
    train, heldout = make_source(settings, "train"), make_source(settings, "heldout")
    expected = calibrate(RowsSource(tmp_path / "rows.safetensors"), 100)
    assert train.calibration == heldout.calibration == expected
    assert sum(len(rows) for _, rows in heldout.batches()) == 20
    given = expected.model_copy(update={"median_norm": 1e9})
    assert make_source(settings, "heldout", calibration=given).calibration == given


def test_gradients_of_a_file_are_for_training_unless_asked_for(tmp_path):
    path, x = tmp_path / "rows.safetensors", torch.randn(200, 4)
    save_file({"x": x, "grad": 2 * x}, path)
    settings = config(source="rows", path=path)
    asked = config(source="rows", path=path, gradients=True)
    assert next(make_source(settings, "train").batches())[1].fields["grad"].equal(2 * x[:180])
    assert make_source(settings, "train").calibration.gradient_rms > 0
    assert not next(make_source(settings, "heldout").batches())[1].fields
    assert next(make_source(asked, "heldout").batches())[1].fields["grad"].equal(2 * x[180:])


@pytest.mark.parametrize("source", ["live", "cached", "rows"])
def test_what_is_missing_is_said(source):
    with pytest.raises(ConfigError, match=f"activations.source {source} needs"):
        make_source(config(source=source), "train")


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_transformer_gives_the_same_rows_both_ways(tmp_path, tiny_hosts, make_plan, same, dtype, gradients):
    from saetools.lm.hosts import make_host

    host = make_host(HostConfig(name=str(tiny_hosts["gpt2"])), "cpu")
    plan = make_plan()
    settings = config(dtype=dtype, point=host.points()[-1], gradients=gradients)
    points = [host.points()[0], host.points()[-1]]
    path = harvest_points(host, plan, points, settings, tmp_path, 10**9)[points[-1]]
    fresh = TokenPlan(plan.corpus, plan.tokenize, "train", plan.context_tokens, plan.host_batch, plan.seed, True)
    live = make_source(settings, "train", host, fresh)
    cached = make_source(settings.model_copy(update={"source": "cached", "path": path}), "train", host, make_plan())
    for _, (n, a), (m, b) in zip(range(10), cached.batches(), live.batches(), strict=False):
        assert n == m
        assert same(a, b)
        assert not gradients or bool(a.fields["grad"].any())
