"""Rows that are kept are those of the source, and memory stays bounded."""

import torch
from small_hosts import BlockRows, host_subject

from saetools.activations.kept_rows import KeptRows
from saetools.dictionaries.topk import TopK
from saetools.evals.base import make_evaluation
from saetools.evals.run import run_evaluations


class Counting(BlockRows):
    """Counts the batches that it made."""

    n_made = 0

    def batches(self, start=0):
        for number, rows in super().batches(start):
            self.n_made += 1
            yield number, rows


def read(source, n=None):
    found = []
    stream = source.batches(0)
    for number, rows in stream:
        found.append((number, rows.x_ND, rows.where_N2))
        if number + 1 == n:
            break
    return found


def same(a, b):
    return len(a) == len(b) and all(i == j and x.equal(y) and u.equal(v) for (i, x, u), (j, y, v) in zip(a, b))


def test_rows_are_the_source_s_and_made_once():
    x = torch.randn(1000, 5)
    source = Counting(x)
    kept, expected = KeptRows(source), read(BlockRows(x))
    assert same(read(kept, 3), expected[:3]) and source.n_made == 3
    assert same(read(kept), expected) and source.n_made == len(expected)
    assert same(read(kept), expected) and source.n_made == len(expected)
    assert [number for number, _ in kept.batches(4)] == [number for number, *_ in expected[4:]]
    begun_later = KeptRows(source)
    assert next(begun_later.batches(4))[0] == 4 and same(read(begun_later), expected)


def test_what_is_kept_is_bounded():
    x = torch.randn(1000, 5)
    source = Counting(x)
    batch_bytes = 64 * (5 * 4 + 2 * 8)
    kept = KeptRows(source, 3 * batch_bytes)
    expected = read(BlockRows(x))
    for _ in range(3):
        assert same(read(kept), expected)
    assert source.n_made == 3 + 3 * (len(expected) - 3)


def test_the_host_runs_once_for_all_evaluations_of_rows():
    subject = host_subject(TopK(TopK.configure(n_features=24, k=3), 6))
    passes, own = [], subject.host.activations
    subject.host.activations = lambda *a, **k: passes.append(1) or own(*a, **k)
    run_evaluations(subject, [make_evaluation("reconstruction"), make_evaluation("geometry")])
    together = len(passes)
    passes.clear()
    run_evaluations(subject, [make_evaluation("reconstruction")])
    assert together == len(passes) > 0
