"""Cutting: nothing lost, nothing reordered, exact restore."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetools.activations.base import ActivationBatch
from saetools.activations.batches import BatchCutter


def rows_of(first, n):
    at = torch.arange(first, first + n)
    return ActivationBatch(at[:, None].float(), torch.stack([at, at], 1), {"grad": -at[:, None].float()})


@settings(max_examples=200, deadline=None)
@given(pushes=st.lists(st.integers(0, 9), max_size=15), n=st.integers(1, 20), interrupt=st.integers(0, 15))
def test_cutting_keeps_the_order(pushes, n, interrupt):
    cutter, first, out = BatchCutter(), 0, []
    for i, size in enumerate(pushes):
        if i == interrupt:
            state, cutter = cutter.state(), BatchCutter()
            cutter.restore(state)
        cutter.push(rows_of(first, size))
        first += size
        while cutter.n_rows >= n:
            batch = cutter.pop(n)
            assert len(batch) == n
            assert batch.fields["grad"].equal(-batch.x_ND)
            out += batch.where_N2[:, 0].tolist()
    assert cutter.n_rows < n
    out += cutter.pop(cutter.n_rows).where_N2[:, 0].tolist() if cutter.n_rows else []
    assert out == list(range(first))


def test_restore_replaces_what_was_queued():
    cutter = BatchCutter()
    cutter.push(rows_of(0, 5))
    cutter.restore({})
    assert cutter.n_rows == 0
    assert cutter.state() == {}


def test_more_than_there_is_is_our_own_mistake():
    with pytest.raises(AssertionError):
        BatchCutter().pop_pieces(1)
