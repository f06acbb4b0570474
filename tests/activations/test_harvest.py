"""Harvest: several points in one pass, resumable after a kill at any instant."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saetools.activations.harvest import _locked, harvest, harvest_points
from saetools.activations.live import LiveSource, live_sources
from saetools.activations.store import CachedSource
from saetools.config import ActivationsConfig
from saetools.errors import DataError, FormatError, MismatchError, RunError

SHARD, EPOCH = 2000, 10**9


def contents(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(directory.iterdir())}


def sources(host, plan, root, points=("embed", "mixed"), **settings):
    return {root / point: source for point, source in live_sources(host, plan, points, "float32", **settings).items()}


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_kills_leave_no_trace(tmp_path, step):
    program = Path(__file__).with_name("harvest_program.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(step)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["kills"] > 150 / step
    assert result["chain_kills"] > 0
    assert not [f for f in result["files"] if "record" in f or "header" in f or "/." in f]


def test_each_store_equals_harvesting_its_point_alone(tmp_path, host, make_plan):
    together = sources(host, make_plan(), tmp_path / "together")
    harvest(together, EPOCH, 100, SHARD)
    passes = next(iter(together.values())).host_pass.n_passes
    for point in ("embed", "mixed"):
        alone = tmp_path / "alone" / point
        harvest({alone: LiveSource(host, make_plan(), point, "float32")}, EPOCH, 100, SHARD)
        assert contents(alone) == contents(tmp_path / "together" / point)
    assert passes <= 7 + 1 + 4  # the epoch, the batch that shows its end, calibration


def test_points_at_different_places_go_on_with_one_pass(tmp_path, host, make_plan):
    reference = sources(host, make_plan(), tmp_path / "reference")
    harvest(reference, EPOCH, 100, SHARD)
    root = tmp_path / "work"
    harvest(sources(host, make_plan(), root, ["embed"]), EPOCH, 100, SHARD)
    late = sources(host, make_plan(), root)
    harvest(late, EPOCH, 100, SHARD)
    for point in ("embed", "mixed"):
        assert contents(root / point) == contents(tmp_path / "reference" / point)


def test_counts_and_rows_are_recorded(tmp_path, host, make_plan):
    harvest(sources(host, make_plan(), tmp_path, ["embed"]), EPOCH, 100, SHARD)
    store = CachedSource(tmp_path / "embed")
    live = LiveSource(host, make_plan(), "embed", "float32").with_calibration(store.calibration)
    stream = live.batches()
    for _ in range(7):
        next(stream)
    assert store.counts == live.counts
    assert store.counts.outliers > 0
    assert store.manifest.n_rows == store.counts.rows == sum(s.n_rows for s in store.manifest.shards)


def test_doing_it_again_changes_nothing(tmp_path, host, make_plan):
    harvest(sources(host, make_plan(), tmp_path, ["mixed"]), 90, 100, SHARD)
    before = contents(tmp_path / "mixed")
    again = sources(host, make_plan(), tmp_path, ["mixed"])
    harvest(again, 90, 100, SHARD)
    assert contents(tmp_path / "mixed") == before
    assert again[tmp_path / "mixed"].host_pass.n_passes == 0
    with pytest.raises(MismatchError, match="is a complete store of"):
        harvest(sources(host, make_plan(), tmp_path, ["mixed"]), 10_000, 100, SHARD)


def test_another_directory_is_not_written_into(tmp_path, host, make_plan):
    harvest(sources(host, make_plan(), tmp_path, ["mixed"]), 90, 100, SHARD)
    before = contents(tmp_path / "mixed")
    for other, word in (
        (sources(host, make_plan(seed=1), tmp_path, ["mixed"]), "plan"),
        (sources(host, make_plan(), tmp_path, ["mixed"], drop_outliers=False), "drop_outliers"),
        ({tmp_path / "mixed": LiveSource(host, make_plan(), "embed", "float32")}, "spec"),
    ):
        with pytest.raises(MismatchError, match=word):
            harvest(other, 90, 100, SHARD)
    (tmp_path / "embed").mkdir()
    (tmp_path / "embed" / "precious.txt").write_text("mine")
    with pytest.raises(MismatchError, match=r"precious\.txt"):
        harvest(sources(host, make_plan(), tmp_path, ["embed"]), 90, 100, SHARD)
    assert contents(tmp_path / "mixed") == before
    assert (tmp_path / "embed" / "precious.txt").read_text() == "mine"


def test_a_directory_has_one_writer(tmp_path, host, make_plan):
    (tmp_path / "mixed").mkdir()
    with _locked(tmp_path / "mixed"), pytest.raises(RunError, match="Another process"):
        harvest(sources(host, make_plan(), tmp_path, ["mixed"]), 90, 100, SHARD)
    harvest(sources(host, make_plan(), tmp_path, ["mixed"]), 90, 100, SHARD)


def test_a_full_disk_is_an_error_and_then_goes_on(tmp_path, host, make_plan, monkeypatch):
    harvest(sources(host, make_plan(), tmp_path / "reference", ["mixed"]), EPOCH, 100, SHARD)
    write, count = os.write, 0

    def full(handle, data):
        nonlocal count
        count += 1
        if count > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match="No space left"):
        harvest(sources(host, make_plan(), tmp_path, ["mixed"]), EPOCH, 100, SHARD)
    with pytest.raises(FormatError, match="run the same harvest again"):
        CachedSource(tmp_path / "mixed")
    monkeypatch.undo()
    (tmp_path / "mixed" / "shard-00042.bin").write_bytes(b"of a harvest that was to be longer")
    harvest(sources(host, make_plan(), tmp_path, ["mixed"]), EPOCH, 100, SHARD)
    assert contents(tmp_path / "mixed") == contents(tmp_path / "reference" / "mixed")


def test_an_activation_that_is_not_finite_stops_it(tmp_path, host, make_plan):
    host.poison[("mixed", 20)] = float("nan")
    with pytest.raises(DataError, match="point mixed"):
        harvest(sources(host, make_plan(), tmp_path, ["mixed"]), EPOCH, 10, SHARD)


def test_the_entry_for_the_command_line_makes_one_store_per_point(tmp_path, host, make_plan):
    settings = ActivationsConfig(point="mixed", dtype="bfloat16", calibration_rows=50)
    stores = harvest_points(host, make_plan(), ["embed", "mixed"], settings, tmp_path, 60)
    assert stores == {"embed": tmp_path / "embed", "mixed": tmp_path / "mixed"}
    for point, path in stores.items():
        store = CachedSource(path)
        assert (store.spec.point, store.header.dtype) == (point, "bfloat16")
        assert 60 <= store.manifest.n_rows < 104
