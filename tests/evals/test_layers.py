"""Two hosts whose layers correspond by construction."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from small_hosts import D_MODEL, Letters, LinearHost, Texts

from saetools.errors import DataError, MismatchError
from saetools.evals.bootstrap import mean_interval
from saetools.evals.layers import LayerMatchingConfig, Measure, _figures, itda_tokens, judged, match_layers
from saetools.records import PointSpec
from saetools.text.packing import TokenPlan

POINTS = ["l0", "l1", "l2", "l3"]


@dataclass
class Deep:
    """Layer i: the embedding times a random matrix of the layer, seen through a rotation of the host's own."""

    revision: str
    layers: list[torch.Tensor]
    turn: torch.Tensor
    tokenize: Letters = field(default_factory=Letters)
    device = "cpu"

    def spec(self, point):
        return PointSpec(host="deep", revision=self.revision, point=point, d_model=D_MODEL)

    def canonical(self, point):
        return point

    def activations(self, ids_BT, points):
        x = LinearHost().embedding[ids_BT]
        return {point: torch.tanh(x @ self.layers[POINTS.index(point)]) @ self.turn for point in points}


def layers(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(D_MODEL, D_MODEL, generator=generator) * 2 for _ in POINTS]


def turned(seed):
    return torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(seed)))[0]


def plan():
    return TokenPlan(Texts(30), Letters(), "heldout", 12, 4, 0, True)


CONFIG = LayerMatchingConfig(n_tokens=400, n_folds=2)


def figures(a, b, **changes):
    return {r.name: r for r in match_layers(a, b, plan(), POINTS, CONFIG, **changes)}


def test_a_similarity_that_is_not_finite_is_null_with_a_note():
    similarity_LLR = np.ones((4, 4, 2))
    similarity_LLR[0, 0, 0] = np.nan
    matching, margin = _figures("cka", similarity_LLR, 100, CONFIG, 0)
    assert matching.value == 0 and matching.series["0"] == [None, 1, 1, 1]
    assert margin.value is None and margin.spread is None and "it came to nan" in margin.note
    json.dumps([record.model_dump(mode="json") for record in (matching, margin)], allow_nan=False)


def test_a_measure_that_tells_nothing_matches_nothing():
    """Folds of five tokens and six dimensions: which R^2 of 1 is the greatest would be up to rounding."""
    config = LayerMatchingConfig(n_tokens=10, n_folds=2)
    a, b = Deep("a", layers(0), turned(0)), Deep("b", layers(0), turned(1))
    found = {r.name: r for r in match_layers(a, b, plan(), POINTS, config)}
    for figure in ("matching", "margin"):
        assert (
            found[f"layer_{figure}_linear"].value is None and "it came to nan" in found[f"layer_{figure}_linear"].note
        )
        assert found[f"layer_{figure}_cka"].value is not None


def test_rotated_layers_are_matched_by_every_measure():
    found = figures(Deep("a", layers(0), turned(0)), Deep("b", layers(0), turned(1)))
    for name in ("cka", "relative", "itda"):
        assert found[f"layer_matching_{name}"].value == 1, name
        assert found[f"layer_margin_{name}"].value > 0, name
    assert "chance is 0.250" in found["layer_matching_cka"].note
    assert found["layer_matching_cka"].n == len(POINTS)
    for figure in ("matching", "margin"):  # of four points
        record = found[f"layer_{figure}_cka"]
        assert record.spread is None and "4 points are too few for an interval" in record.note


def test_the_two_directions_of_a_place_are_one_item_of_the_interval():
    """Half of the places matched rightly in both directions: as many items as places, not twice as many."""
    similarity_LLR = np.eye(20)[:, :, None] + np.zeros((20, 20, 2))
    similarity_LLR[np.arange(10), np.arange(10)] = -1.0  # no longer the greatest, seen from either host
    record = _figures("spy", similarity_LLR, 100, CONFIG, 0)[0]
    assert record.value == 0.5 and record.n == 20
    assert record.spread == mean_interval([0.0] * 10 + [1.0] * 10, 0)
    similarity_LLR = np.eye(20)[:, :, None] + np.zeros((20, 20, 2))
    similarity_LLR[:10, 19] = 2.0  # ten of A take the last of B for theirs, which takes one of A
    assert _figures("spy", similarity_LLR, 100, CONFIG, 0)[0].value == pytest.approx((10 + 19) / 40)


def test_unrelated_orders_are_not():
    a = Deep("a", layers(0), turned(0))
    b = Deep("b", [layers(0)[i] for i in (1, 2, 3, 0)], turned(1))
    assert figures(a, b)["layer_matching_cka"].value == 0


def test_the_same_tokens_are_compared():
    seen = []

    def measure(x, y):
        seen.append((len(x), torch.equal(x, y)))
        return 0.0

    a, b = Deep("a", layers(0), turned(0)), Deep("b", layers(0), turned(0))
    match_layers(a, b, plan(), POINTS, CONFIG, {"spy": Measure(measure)})
    assert {n for n, _ in seen} == {200}
    assert sum(equal for _, equal in seen) == CONFIG.n_folds * len(POINTS)


def test_itda_takes_the_tokens_that_nothing_before_them_explains():
    """Rows along six axes: the first of each axis becomes an atom, in any model that sees them rotated."""
    axes = torch.tensor([0, 0, 1, 0, 2, 1, 3, 3, 4, 5])
    x = torch.eye(D_MODEL)[axes] * torch.arange(1.0, 11)[:, None]
    firsts = {(0, int((axes == axis).nonzero()[0])) for axis in range(6)}
    for rows in (x, x @ turned(3)):
        assert itda_tokens(rows, k=4, min_cosine=0.9) == firsts
    a, b = Deep("a", layers(0), turned(0)), Deep("b", layers(0), turned(1))
    (row, *_) = np.array(list(figures(a, b)["layer_matching_itda"].series.values()))
    assert row[0] == pytest.approx(1) and row[0] > max(row[1:])


@pytest.mark.parametrize("n_read_tokens", [10**6, 301])
def test_tokens_are_drawn_from_all_that_is_read_whatever_the_batches(n_read_tokens):
    config = LayerMatchingConfig(n_tokens=200, n_folds=2, n_read_tokens=n_read_tokens)
    seen = {}
    for host_batch in (4, 5):
        tokens = TokenPlan(Texts(30), Letters(), "heldout", 12, host_batch, 0, True)
        rows = seen.setdefault(host_batch, [])
        spy = {"spy": Measure(lambda x, y, rows=rows: rows.append(x) or 0.0)}
        match_layers(Deep("a", layers(0), turned(0)), Deep("b", layers(0), turned(1)), tokens, POINTS, config, spy)
    assert all(torch.equal(a, b) for a, b in zip(seen[4], seen[5], strict=True))


def test_what_cannot_be_matched():
    a = Deep("a", layers(0), turned(0))
    with pytest.raises(MismatchError, match="one model"):
        match_layers(a, a, plan(), POINTS)
    other = Deep("b", layers(0), turned(0))
    other.tokenize = type("Other", (Letters,), {"fingerprint": lambda self: "other"})()
    with pytest.raises(MismatchError, match="tokenizers"):
        match_layers(a, other, plan(), POINTS)
    with pytest.raises(DataError, match="two points"):
        match_layers(a, Deep("b", layers(0), turned(0)), plan(), POINTS[:1])


def test_judgement():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.0], [0.0, 0.0, 0.3]])[:, :, None]
    right, margin = judged(similarity)
    assert right.tolist() == [1, 0, 1]
    assert margin == pytest.approx([0.7, -0.1, 0.3])
