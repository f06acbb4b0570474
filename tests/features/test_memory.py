"""What a pass holds does not grow with the corpus."""

import tracemalloc
from collections.abc import Iterator

import pytest
import torch
from toy import SignedDictionary, ToyPlan, ToySource

from saetools.activations.base import ActivationBatch
from saetools.features import contexts
from saetools.features.collect import CollectSettings, collect
from saetools.text.base import TokenBatch

WIDTH, HOST_BATCH = 32, 16


class Stream:
    """Plan and source at once: batch `number` is made from its number, and from nothing that is kept."""

    def __init__(self, n_batches: int) -> None:
        self.n_batches = n_batches

    def _made(self, number: int) -> tuple[TokenBatch, ActivationBatch]:
        plan = ToyPlan(n_batches=1, host_batch=HOST_BATCH, width=WIDTH, seed=number)
        tokens = plan.made[0]
        shifted = TokenBatch(
            number, tokens.ids_BT, tokens.keep_BT, tokens.document_B + number * HOST_BATCH, tokens.position_BT
        )
        rows = ToySource(plan, seed=number).rows[0]
        where_N2 = rows.where_N2 + torch.tensor([number * HOST_BATCH, 0])
        return shifted, ActivationBatch(rows.x_ND, where_N2)

    def document_id(self, number: int) -> str:
        return f"doc{number}.py"


class Tokens(Stream):
    def batches(self, start: int = 0) -> Iterator[TokenBatch]:
        yield from (self._made(number)[0] for number in range(start, self.n_batches))


class Rows(Stream):
    def batches(self, start: int = 0) -> Iterator[tuple[int, ActivationBatch]]:
        yield from ((number, self._made(number)[1]) for number in range(start, self.n_batches))


def peak_bytes(n_batches: int) -> tuple[int, int]:
    """(greatest number of bytes allocated, rows read)."""
    settings = CollectSettings(n_top=2, n_random=3, n_uniform=3, before=8, after=4, coactivation_tokens=1000)
    dictionary = SignedDictionary(n_features=30, k=6)
    tracemalloc.start()
    try:
        collected = collect(dictionary, Rows(n_batches), Tokens(n_batches), settings)  # type: ignore[arg-type]
        return tracemalloc.get_traced_memory()[1], collected.moments.n_rows
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_corpus_ten_times_as_long_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "MANY_WINDOWS", 200)
    peak_bytes(2)  # imports and caches
    short, n_short = peak_bytes(40)  # more windows than all slots together need
    long, n_long = peak_bytes(400)
    assert n_long > 9 * n_short and n_short > 5000
    assert long < 1.1 * short, (short, long)
