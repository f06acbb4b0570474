"""Prefetch: same bits, exceptions arrive in their place, threads end."""

import threading
import time

import pytest

from saetools.activations.live import LiveSource
from saetools.activations.prefetch import PrefetchedSource, ahead
from saetools.activations.shuffle import ShuffledRows


def threads():
    return [t for t in threading.enumerate() if t.name == "saetools-prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_no_bit_changes(host, make_plan, same, depth):
    plain, made_ahead = (
        ShuffledRows(source, 64, 0, 16)
        for source in (
            LiveSource(host, make_plan(), "mixed", "bfloat16"),
            PrefetchedSource(LiveSource(host, make_plan(), "mixed", "bfloat16"), depth),
        )
    )
    for _ in range(40):
        assert same(plain.next_block(), made_ahead.next_block())
    (tensors, state), (other_tensors, other_state) = plain.state(), made_ahead.state()
    assert state == other_state
    assert all(tensors[name].equal(other_tensors[name]) for name in tensors)
    made_ahead.close()
    assert threads() == []


def test_finite_sources_end(make_list_source):
    source = PrefetchedSource(make_list_source([3, 4]), 5)
    assert [n for n, _ in source.batches()] == [0, 1]
    assert [n for n, _ in source.batches(1)] == [1]
    assert threads() == []


def test_an_error_is_raised_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise KeyError("third")

    stream = ahead(items, 3)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(stream)
    assert threads() == []


def test_an_error_of_the_maker_itself_is_raised():
    def broken():
        raise OSError("cannot begin")

    with pytest.raises(OSError, match="cannot begin"):
        next(ahead(broken, 1))
    assert threads() == []


def test_at_most_depth_items_wait():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    stream = ahead(items, 3)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # taken, waiting, in the producer's hand
    stream.close()
    assert threads() == []


def test_closing_early_closes_the_items(make_list_source):
    source = make_list_source([1] * 50)
    stream = PrefetchedSource(source, 2).batches()
    next(stream)
    stream.close()
    assert source.closed == 1
    assert threads() == []
