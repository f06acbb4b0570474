"""From config to rows: every source, its calibration, what is refused; and a real transformer's rows both ways."""

import pytest
import torch
from safetensors.torch import save_file

from saetools.activations.calibration import calibrate
from saetools.activations.harvest import harvest_points
from saetools.activations.live import LiveSource
from saetools.activations.prefetch import PrefetchedSource
from saetools.activations.rows import RowsSource
from saetools.activations.sources import estimate_bytes, make_source
from saetools.activations.store import CachedSource
from saetools.config import ActivationsConfig, HostConfig
from saetools.errors import ConfigError, MismatchError
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


def test_live_and_cached_are_the_same_stream(tmp_path, host, make_plan, same):
    path = harvest_points(host, make_plan(), ["mixed"], config(), tmp_path, 10**9)["mixed"]
    live = make_source(config(), "train", host, make_plan())
    for extra in ({}, {"prefetch": 2}):
        cached = make_source(config(source="cached", path=path, **extra), "train", host, make_plan())
        assert cached.calibration == live.calibration
        assert cached.fingerprint() == live.fingerprint()
        stream = cached.batches()
        for _, (n, a), (m, b) in zip(range(15), stream, live.batches(), strict=False):
            assert n == m
            assert same(a, b)
        stream.close()
    assert isinstance(cached, PrefetchedSource)


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


@pytest.mark.parametrize("source", ["live", "cached", "rows"])
def test_what_is_missing_is_said(source):
    with pytest.raises(ConfigError, match=f"activations.source {source} needs"):
        make_source(config(source=source), "train")


def test_estimates():
    estimate = estimate_bytes(config(dtype="bfloat16", ring_rows=1000), d_model=64, n_rows=500)
    assert estimate.ring == 1000 * (128 + 16)
    assert estimate.store == 500 * (128 + 16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_transformer_gives_the_same_rows_both_ways(tmp_path, tiny_hosts, make_plan, same, dtype):
    from saetools.lm.hosts import make_host

    host = make_host(HostConfig(name=str(tiny_hosts["gpt2"])), "cpu")
    plan = make_plan()
    settings = config(dtype=dtype, point=host.points()[-1])
    points = [host.points()[0], host.points()[-1]]
    path = harvest_points(host, plan, points, settings, tmp_path, 10**9)[points[-1]]
    fresh = TokenPlan(plan.corpus, plan.tokenize, "train", plan.context_tokens, plan.host_batch, plan.seed, True)
    live = make_source(settings, "train", host, fresh)
    cached = make_source(settings.model_copy(update={"source": "cached", "path": path}), "train", host, make_plan())
    for _, (n, a), (m, b) in zip(range(10), cached.batches(), live.batches(), strict=False):
        assert n == m
        assert same(a, b)
