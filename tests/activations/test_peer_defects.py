"""Defects that other libraries' data paths had, as tests of ours. Named after the library and what went wrong there."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saetools.activations.calibration import calibrate
from saetools.activations.harvest import harvest
from saetools.activations.live import LiveSource
from saetools.activations.rows import RowsSource
from saetools.activations.shuffle import ShuffledRows
from saetools.activations.store import CachedSource


def test_saelens_reading_again_begins_again(host: Any, make_plan: Any, same: Any) -> None:
    """Its reset_input_dataset does nothing."""
    source = LiveSource(host, make_plan(), "mixed", "float32")
    first = [next(stream)[1] for stream in [source.batches()] for _ in range(3)]
    again = [next(stream)[1] for stream in [source.batches()] for _ in range(3)]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


def test_saelens_a_store_keeps_the_dtype(host: Any, make_plan: Any, tmp_path: Path) -> None:
    """Its streaming cache widens everything to float32."""
    for dtype in ("float32", "bfloat16"):
        harvest({tmp_path / dtype: LiveSource(host, make_plan(), "mixed", dtype)}, 10**9, 100, 2000)
    stores = {dtype: CachedSource(tmp_path / dtype) for dtype in ("float32", "bfloat16")}
    assert next(stores["bfloat16"].batches())[1].x_ND.dtype == torch.bfloat16
    sizes = {d: sum(f.stat().st_size for f in (tmp_path / d).glob("*.bin")) for d in stores}
    n_rows = stores["float32"].manifest.n_rows
    assert n_rows == stores["bfloat16"].manifest.n_rows
    assert sizes["float32"] - sizes["bfloat16"] == n_rows * 2 * stores["float32"].spec.d_model


def test_saelens_evaluation_reads_no_training_data(host: Any, make_plan: Any, tmp_path: Path) -> None:
    """Its evaluations draw tokens from the stream that it trains on."""
    read = {}
    for split in ("train", "heldout"):
        source = LiveSource(host, make_plan(split), "mixed", "float32")
        documents = {int(d) for _, (_, rows) in zip(range(7), source.batches()) for d in rows.where_N2[:, 0]}
        read[split] = {source.document_id(number) for number in documents}
    assert len(read["train"]) == len(read["heldout"]) == 13 and not read["train"] & read["heldout"]
    np.save(tmp_path / "x.npy", np.arange(400, dtype=np.float32).reshape(200, 2))
    rows = {
        split: {
            int(row)
            for _, (_, batch) in zip(range(9), RowsSource(tmp_path / "x.npy", split=split, batch_rows=25).batches())
            for row in batch.where_N2[:, 1]
        }
        for split in ("train", "heldout")
    }
    assert rows == {"train": set(range(180)), "heldout": set(range(180, 200))}


def test_bionemo_no_two_epochs_are_alike(tmp_path: Path) -> None:
    """A fixed seed gives it the same order of shards in every epoch. Here a batch of one epoch is in no other."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32))
    bare = RowsSource(tmp_path / "x.npy", batch_rows=40)
    source = RowsSource(tmp_path / "x.npy", batch_rows=40, calibration=calibrate(bare, 100), drop_outliers=False)
    blocks = ShuffledRows(source, 120, 0, 20)
    epochs = [[sorted(blocks.next_block().where_N2[:, 1].tolist()) for _ in range(18)] for _ in range(3)]
    assert [len(batch) for epoch in epochs for batch in epoch] == [20] * 54  # 360 rows are an epoch
    assert not any(batch in other for batch in epochs[0] for other in epochs[1:])


def test_bionemo_rows_are_read_in_blocks(
    host: Any, make_plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data set reads row by row."""
    harvest({tmp_path / "store": LiveSource(host, make_plan(), "mixed", "float32")}, 10**9, 100, 10**6)
    reads, read = 0, os.pread

    def counted(*arguments: Any) -> bytes:
        nonlocal reads
        reads += 1
        return read(*arguments)

    monkeypatch.setattr(os, "pread", counted)
    n_rows = sum(len(rows) for _, (_, rows) in zip(range(7), CachedSource(tmp_path / "store").batches()))
    assert n_rows > 200 and 0 < reads < 10
