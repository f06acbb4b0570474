"""A store of every kind of dictionary: its numbers are those of the codes. Nothing here knows a kind."""

from pathlib import Path

import pytest
import torch
from toy import D_MODEL, SPEC, ToyHost, ToyPlan, ToySource

from saetools.activations.base import ActivationBatch
from saetools.dictionaries.base import available_dictionaries, make_dictionary
from saetools.features.collect import CollectSettings, collect
from saetools.features.entries import Description, describe
from saetools.features.store import FeatureStore
from saetools.features.write import write_store

KINDS = sorted({cls.kind for cls in available_dictionaries().values()})


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_of_every_kind(kind: str, tmp_path: Path) -> None:
    config = available_dictionaries()[kind].examples()[0]
    dictionary = make_dictionary(config, D_MODEL, seed=1)
    plan = ToyPlan(n_batches=6)
    source = ToySource(plan)
    source.rows = [ActivationBatch(b.x_ND, b.where_N2, {"grad": b.x_ND.flip(1)}) for b in source.rows]
    if dictionary.trained_by == "construction":
        dictionary.update(source.rows[0].x_ND, source.rows[0].where_N2, dictionary.initial_state())
    collected = collect(dictionary, source, plan, CollectSettings(n_top=3, n_random=4, n_uniform=1))
    info, entries = describe(collected, dictionary, SPEC, ToyHost(), Description(kind))
    write_store(tmp_path / "features", info, entries)
    store = FeatureStore.open(tmp_path / "features")
    with torch.no_grad():
        code_NF = torch.cat([dictionary.encode(b.x_ND, dict(b.fields)).to_dense() for b in source.rows])
    columns = store.columns("count", "mean_square")
    assert columns["count"].tolist() == (code_NF != 0).sum(0).tolist() and columns["count"].sum() > 0
    assert columns["mean_square"] == pytest.approx(code_NF.double().square().mean(0).numpy(), rel=1e-5)
    top = next(row.feature for row in store.table("-count").rows if row.count)
    assert store.examples(top) and store.feature(top).logits is not None
