"""The ring: multiset in = multiset out, one stream whatever reads it, exact restore."""

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetools.activations.shuffle import ShuffledRows, check_ring, ring_bytes
from saetools.errors import ConfigError, MismatchError

sizes_of_batches = st.lists(st.integers(0, 25), max_size=12)


def drain(rows):
    blocks = []
    while (block := rows.next_block()) is not None:
        blocks.append(block)
    return blocks


@settings(max_examples=80, deadline=None)
@given(
    sizes=sizes_of_batches,
    ring=st.integers(4, 60),
    block=st.integers(1, 4),
    seed=st.integers(0, 5),
    d=st.integers(1, 3),
)
def test_multiset_in_is_multiset_out_and_columns_stay_together(sizes, ring, block, seed, d):
    source = list_source(sizes, d, fields=True)
    blocks = drain(ShuffledRows(source, ring, seed, block))
    given_out = [row for b in blocks for row in b.where_N2[:, 1].tolist()]
    assert sorted(given_out) == list(range(sum(sizes)))
    assert all(len(b) == block for b in blocks[:-1])
    for b in blocks:
        assert b.x_ND.equal(b.where_N2[:, 1:].float().expand(-1, d))
        assert b.fields["grad"].equal(-b.x_ND)
        assert b.where_N2[:, 0].equal(b.where_N2[:, 1] // 7)


@settings(max_examples=50, deadline=None)
@given(sizes=sizes_of_batches, ring=st.integers(4, 60), block=st.integers(1, 4), stop=st.integers(0, 40))
def test_restored_equals_uninterrupted(sizes, ring, block, stop):
    straight = drain(ShuffledRows(list_source(sizes, 2, fields=True), ring, 3, block))
    rows = ShuffledRows(list_source(sizes, 2, fields=True), ring, 3, block)
    before = [rows.next_block() for _ in range(min(stop, len(straight)))]
    tensors, state = copy.deepcopy(rows.state())
    rows.next_block()  # the first ring goes on; its copy must not notice
    resumed = ShuffledRows(list_source(sizes, 2, fields=True), ring, 3, block)
    resumed.restore(tensors, state)
    for name, tensor in tensors.items():
        if name.startswith("ring."):
            tensor.fill_(-1)  # a restored ring has memory of its own
    blocks = before + drain(resumed)
    assert len(blocks) == len(straight)
    assert all(a.x_ND.equal(b.x_ND) and a.where_N2.equal(b.where_N2) for a, b in zip(blocks, straight, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_dtype_keeps_its_bits(dtype, make_list_source):
    blocks = drain(ShuffledRows(make_list_source([40, 40], 5, dtype=dtype), 32, 0, 8))
    x = torch.cat([b.x_ND for b in blocks])
    assert x.dtype is dtype
    assert sorted(x[:, 4].float().tolist()) == list(range(80))


def test_the_order_is_mixed_and_decided_by_the_seed(make_list_source):
    def order(seed):
        blocks = drain(ShuffledRows(make_list_source([1000]), 200, seed, 20))
        return [row for b in blocks for row in b.where_N2[:, 1].tolist()]

    assert order(0) == order(0) != order(1)
    distance = sum(abs(i - row) for i, row in enumerate(order(0))) / 1000
    assert distance > 50  # a shuffle within blocks alone would give 7
    assert sum(row < 200 for row in order(0)[500:]) < 40  # of the first ring 200 * 0.9^25 = 14 are left by then


def test_batches_of_any_size_come_from_one_stream(make_list_source):
    rows = [ShuffledRows(make_list_source([13] * 40), 64, 0, 16) for _ in range(2)]
    a = torch.cat([rows[0].next_block().x_ND for _ in range(20)])
    b = torch.cat([block.x_ND for block in drain(rows[1])])
    assert a.equal(b[: len(a)])


def test_the_ring_is_refilled_in_place_and_checkpoints_are_small(make_list_source):
    rows = ShuffledRows(make_list_source([50] * 20, 4), 100, 0, 10)
    rows.next_block()
    memory = rows.state()[0]["ring.x"].data_ptr()
    for _ in range(30):
        rows.next_block()
    tensors, state = rows.state()
    assert tensors["ring.x"].data_ptr() == memory
    assert tensors["ring.x"].nbytes + tensors["ring.where"].nbytes == ring_bytes(100, 4, "float32")
    assert len(tensors["leftover.x"]) < 50
    assert state["refill"] == 31


def test_blocks_own_their_memory(make_list_source):
    rows = ShuffledRows(make_list_source([50] * 20), 100, 0, 10)
    block = rows.next_block()
    kept = block.x_ND.clone()
    for _ in range(30):
        rows.next_block()
    assert block.x_ND.equal(kept)


def test_the_memory_told_is_that_of_all_columns(make_list_source, caplog):
    """A rows file trains with its own gradients, whatever activations.gradients says."""
    with caplog.at_level(logging.INFO):
        rows = ShuffledRows(make_list_source([1000] * 20, 64, fields=True), 5000, 0, 10)
        rows.next_block()
        rows.next_block()
    told = [record.getMessage() for record in caplog.records if "ring takes" in record.getMessage()]
    assert told == [f"the shuffle ring takes {ring_bytes(5000, 64, 'float32', 1) / 1e6:.1f} MB for 5000 rows"]


def test_bytes_of_a_ring():
    assert ring_bytes(65_536, 768, "bfloat16") == 65_536 * (1536 + 16)
    assert ring_bytes(10, 4, "float32", n_fields=1) == 10 * (32 + 16)


@pytest.mark.parametrize(("ring", "batch", "block"), [(100, 101, 10), (100, 10, 101)])
def test_a_ring_that_is_too_small_is_refused(ring, batch, block, make_list_source):
    with pytest.raises(ConfigError, match=r"activations\.ring_rows is 100"):
        check_ring(ring, batch, block)
    with pytest.raises(ConfigError):
        ShuffledRows(make_list_source([5]), 10, 0, 11)
    check_ring(101, 101, 101)


@pytest.mark.parametrize("change", [{"seed": 1}, {"ring_rows": 65}, {"block_rows": 8}])
def test_a_state_of_another_ring_is_refused(change, make_list_source):
    tensors, state = ShuffledRows(make_list_source([50]), 64, 0, 16).state()
    settings = {"ring_rows": 64, "seed": 0, "block_rows": 16} | change
    with pytest.raises(MismatchError, match=next(iter(change))):
        ShuffledRows(make_list_source([50]), **settings).restore(tensors, state)
    with pytest.raises(MismatchError, match="source"):
        ShuffledRows(make_list_source([51]), 64, 0, 16).restore(tensors, state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_ring_on_the_gpu_gives_the_rows_of_one_on_the_cpu(make_list_source):
    rings = [ShuffledRows(make_list_source([50] * 20, 4), 100, 0, 10, device=device) for device in ("cpu", "cuda")]
    for i in range(100):
        on_cpu, on_gpu = (ring.next_block() for ring in rings)
        assert on_gpu.x_ND.device.type == "cuda"
        assert on_cpu.x_ND.equal(on_gpu.x_ND.cpu())
        if i == 40:
            rings[1].restore(*copy.deepcopy(rings[0].state()))
    assert all(ring.next_block() is None for ring in rings)


def test_closing_closes_the_source(make_list_source):
    source = make_list_source([50, 50])
    rows = ShuffledRows(source, 16, 0, 8)
    rows.next_block()
    rows.close()
    assert source.closed == 1


@pytest.fixture(autouse=True)
def _list_source(make_list_source):
    """hypothesis wants no function-scoped fixtures in its arguments."""
    global list_source
    list_source = make_list_source
