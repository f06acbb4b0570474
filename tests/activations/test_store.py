"""Stores: the rows of the live source bit for bit, from any batch; damage is noticed before use."""

import random
import shutil
import tracemalloc

import pytest
import torch

from saetools.activations import layout
from saetools.activations.base import ActivationBatch
from saetools.activations.calibration import calibrate
from saetools.activations.harvest import harvest
from saetools.activations.layout import RowLayout
from saetools.activations.live import LiveSource
from saetools.activations.shuffle import ShuffledRows
from saetools.activations.store import CachedSource
from saetools.errors import DataError, FormatError, MismatchError

SHARD = 2000  # bytes: a few host batches
EPOCH = 10**9  # more rows than an epoch has


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(layout, "BLOCK_BYTES", 400)


@pytest.fixture
def make_store(tmp_path, host, make_plan):
    def make(n_rows=EPOCH, split="train", dtype="float32", point="mixed", path=tmp_path / "store", **plan):
        source = LiveSource(host, make_plan(split, **plan), point, dtype)
        harvest({path: source}, n_rows, 100, SHARD)
        return path

    return make


def live(host, plan, point="mixed", dtype="float32"):
    bare = LiveSource(host, plan, point, dtype)
    return bare.with_calibration(calibrate(bare, 100))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("point", ["embed", "mixed"])
def test_live_equals_cached_bit_for_bit_over_epochs(make_store, make_plan, host, same, point, dtype):
    source = LiveSource(host, make_plan(), point, dtype)
    expected = source.with_calibration(calibrate(source, 100))
    cached = CachedSource(make_store(dtype=dtype, point=point))
    assert len(cached.manifest.shards) > 2
    assert cached.calibration == expected.calibration
    assert cached.spec == expected.spec
    for _, (n, a), (m, b) in zip(range(23), cached.batches(), expected.batches(), strict=False):
        assert n == m
        assert same(a, b)
    assert cached.fingerprint() == expected.fingerprint()
    assert cached.n_batches == 7
    assert all(cached.document_id(i) == f"train/doc{i}" for i in range(13))


def test_the_heldout_split_ends(make_store, make_plan, host, same):
    cached = CachedSource(make_store(split="heldout"))
    rows = list(cached.batches())
    plan = make_plan("heldout")
    bare = LiveSource(host, plan, "mixed", "float32").with_calibration(cached.calibration)
    expected = list(bare.batches())
    assert [n for n, _ in rows] == [n for n, _ in expected]
    assert all(same(a, b) for (_, a), (_, b) in zip(rows, expected, strict=True))
    assert cached.counts == bare.counts


@pytest.mark.parametrize("start", range(0, 16, 3))
def test_restart_at_any_batch_is_a_seek(make_store, same, start):
    cached = CachedSource(make_store())
    stream = cached.batches()
    straight = [next(stream) for _ in range(20)]
    again = cached.batches(start)
    for n, a in straight[start : start + 4]:
        m, b = next(again)
        assert n == m
        assert same(a, b)
    stream.close()
    again.close()


def test_a_shuffled_run_goes_on_from_live_to_cached(make_store, make_plan, host, same):
    cached = CachedSource(make_store())
    straight = ShuffledRows(live(host, make_plan()), 64, 0, 16)
    first = ShuffledRows(live(host, make_plan()), 64, 0, 16)
    for _ in range(9):
        assert same(straight.next_block(), first.next_block())
    resumed = ShuffledRows(cached, 64, 0, 16)
    resumed.restore(*first.state())
    for _ in range(30):
        assert same(straight.next_block(), resumed.next_block())


def test_a_part_of_an_epoch_ends_with_a_clear_error(make_store):
    cached = CachedSource(make_store(n_rows=80))
    n = cached.manifest.n_rows
    assert 80 <= n < 80 + 44
    assert cached.n_batches is None
    stream = cached.batches()
    read = 0
    with pytest.raises(DataError, match=f"holds {n} rows"):
        while True:
            read += len(next(stream)[1])
    assert read == n


@pytest.mark.parametrize(("host_batch", "n_batches"), [(4, 7), (13, 2)])  # the last batch half full, and full
def test_a_store_of_exactly_one_epoch_repeats(make_store, tmp_path, host_batch, n_batches):
    n_rows = CachedSource(make_store(host_batch=host_batch)).manifest.n_rows
    exact = make_store(n_rows, path=tmp_path / "exact", host_batch=host_batch)
    assert CachedSource(exact).n_batches == n_batches
    less = make_store(n_rows - 1 - 44 * host_batch // 4, path=tmp_path / "less", host_batch=host_batch)
    assert CachedSource(less).n_batches is None


def test_every_damage_is_noticed_before_use(make_store, tmp_path, same):
    store = make_store(dtype="bfloat16")
    reference = list(_read_all(store))
    files = sorted(store.iterdir())
    assert {f.suffix for f in files} == {".bin", ".json"}
    rng, noticed = random.Random(0), 0
    copy = tmp_path / "copy"
    for _ in range(450):
        file = rng.choice(files)
        data = bytearray(file.read_bytes())
        kind = rng.choice(["flip", "flip", "byte", "cut", "longer", "hole"])
        at = rng.randrange(len(data))
        if kind == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            data[at] = (data[at] + rng.randrange(1, 256)) % 256
        elif kind == "cut":
            del data[at:]
        elif kind == "longer":
            data += bytes(rng.randrange(1, 5))
        else:
            del data[at]
        shutil.copytree(store, copy)
        (copy / file.name).write_bytes(data)
        read = []
        with pytest.raises(FormatError) as error:
            read.extend(_read_all(copy, read))
        assert file.name in str(error.value)
        assert all(same(a, b) for a, b in zip(read, reference, strict=False))
        noticed += 1
        shutil.rmtree(copy)
    assert noticed == 450


def _read_all(path, read=None):
    source = CachedSource(path)
    for number, rows in source.batches():
        if number == 7:
            break
        if read is not None:
            read.append(rows)
        else:
            yield rows
    source.document_id(0)


def test_missing_and_swapped_shards_are_named(make_store, tmp_path):
    store = make_store(with_outliers=False)
    for name in ("shard-00001.bin", "shard-00001.documents.json", "manifest.json"):
        copy = shutil.copytree(store, tmp_path / name)
        (copy / name).unlink()
        with pytest.raises(FormatError, match=name):
            list(_read_all(copy))
    swapped = shutil.copytree(store, tmp_path / "swapped")
    same_size = next(
        (a, b)
        for a in sorted(store.glob("*.bin"))
        for b in sorted(store.glob("*.bin"))
        if a < b and a.read_bytes() != b.read_bytes()
    )
    for a, b in (same_size, same_size[::-1]):
        (swapped / a.name).write_bytes(b.read_bytes())
    with pytest.raises(FormatError, match="shard-0000"):
        list(_read_all(swapped))


def test_a_shard_changed_while_reading_is_noticed(make_store):
    store = make_store()
    stream = CachedSource(store).batches()
    next(stream)
    last = sorted(store.glob("*.bin"))[-1]
    last.write_bytes(bytes(last.stat().st_size))
    with pytest.raises(FormatError, match=last.name):
        for _ in range(7):
            next(stream)


def test_what_is_not_a_store_is_refused(tmp_path, make_store):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FormatError, match=r"not a complete store.*made by `saetools harvest`"):
            CachedSource(path)
    store = make_store()
    for path in (store.parent, store.with_name("another")):
        with pytest.raises(FormatError, match=f"Stores there: {store}"):
            CachedSource(path)
    (tmp_path / "header.json").touch()
    with pytest.raises(FormatError, match="It was begun: run the same harvest again"):
        CachedSource(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 1, "files": {}}')
    with pytest.raises(FormatError, match="does not describe a store"):
        CachedSource(tmp_path)


def test_other_hosts_points_and_corpora_are_refused(make_store, make_plan, host):
    cached = CachedSource(make_store())
    cached.check_host(host, "mixed")
    cached.check_plan(make_plan(seed=5))
    cached.check_settings(point="mixed", dtype="float32")
    with pytest.raises(MismatchError, match="point is 'mixed', the run has 'embed'"):
        cached.check_host(host, "embed")
    other = host.spec("mixed", cached.spec.context_tokens).model_copy(update={"host": "other", "revision": "r1"})
    host.spec = lambda point, context_tokens: other
    with pytest.raises(MismatchError, match="host is 'fake', the run has 'other'; revision is 'r0', the run has 'r1'"):
        cached.check_host(host, "mixed")
    with pytest.raises(MismatchError, match="corpus is 'fake corpus 0"):
        cached.check_plan(make_plan(salt=1))
    with pytest.raises(MismatchError, match="split is 'train'"):
        cached.check_plan(make_plan("heldout"))
    with pytest.raises(MismatchError, match="dtype is 'float32'"):
        cached.check_settings(dtype="bfloat16")


def test_rows_with_fields_survive_packing(same):
    layout_ = RowLayout(3, "bfloat16", {"grad": (3,), "scalar": ()})
    x = torch.randn(5, 3).bfloat16()
    rows = ActivationBatch(x, torch.arange(10).view(5, 2), {"grad": -x, "scalar": x[:, 0].contiguous()})
    assert layout_.row_bytes == 6 + 16 + 6 + 2
    assert same(layout_.unpack(layout_.pack(rows)), rows)


def test_blocks_have_one_to_four_mebibytes(monkeypatch):
    monkeypatch.undo()
    for d_model in (192, 768, 4096, 16_384):
        for dtype in ("bfloat16", "float32"):
            made = RowLayout(d_model, dtype, {})
            assert 1 << 20 <= made.block_rows * made.row_bytes <= 4 << 20


def test_memory_of_reading_is_a_block_and_a_batch(tmp_path, make_store, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK_BYTES", 4000)
    small, large = make_store(path=tmp_path / "small"), make_store(path=tmp_path / "large")
    peaks = []
    for path, n_batches in ((small, 7), (large, 700)):
        stream = CachedSource(path).batches()
        next(stream)
        tracemalloc.start()
        for _ in range(n_batches):
            next(stream)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        stream.close()
    assert peaks[1] < peaks[0] + 20_000
