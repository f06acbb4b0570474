"""A small feature store made of records alone: no torch, no host."""

import random
from pathlib import Path

from payloads import PAYLOADS

from saetools.features.records import (
    BAND_TITLES,
    Example,
    FeatureRecord,
    Histogram,
    LogitEffect,
    Neighbour,
    StoreInfo,
    TokenWeight,
)
from saetools.features.write import Entry, write_store
from saetools.records import PointSpec

N_FEATURES = len(PAYLOADS) + 4
DEAD = N_FEATURES - 1
TITLE = "Fixture <b>of</b> & </title><script>window.__pwned++</script>"


def entry(feature: int) -> Entry:
    if feature == DEAD:
        return Entry(FeatureRecord(feature=feature, count=0, density=0.0))
    draw = random.Random(feature)
    payload = PAYLOADS[feature % len(PAYLOADS)]
    neighbours = tuple(Neighbour(feature=(feature + step) % N_FEATURES, value=1 - step / 20) for step in range(1, 13))
    weights = tuple(
        TokenWeight(token=PAYLOADS[(feature + j) % len(PAYLOADS)][:80], weight=1 - j / 10) for j in range(10)
    )
    record = FeatureRecord(
        feature=feature,
        count=feature * 7 + 1,
        density=(feature * 7 + 1) / 100_000,
        mean=draw.uniform(0.5, 2),
        mean_square=0.25,
        skewness=draw.uniform(-1, 1),
        kurtosis=None if feature == 3 else draw.uniform(-1, 9),
        max_value=-4.0 if feature == 2 else 4.0,
        n_contexts=feature + 1,
        histogram=Histogram(first=190, positive=(3, 9, 27, 9, 3), negative=(1, 2, 3, 2, 1) if feature == 2 else ()),
        logits=LogitEffect(top=weights, bottom=weights[::-1], low=-1.0, high=1.0, counts=(1, 5, 20, 5, 1)),
        decoder_neighbours=neighbours,
        jaccard=neighbours[:4],
        map_xy=(draw.gauss(0, 1), draw.gauss(0, 1)),
    )
    return Entry(record, [example(draw, payload, band) for band in BAND_TITLES for _ in range(3)])


def example(draw: random.Random, payload: str, band: str) -> Example:
    words = ["def ", "load", "(", "path", "):", "\n    ", "return", " ", "None", "\n\n", "\t", "é日本"]
    tokens = [draw.choice(words) for _ in range(20)]
    tokens[9] = payload
    values = [draw.uniform(0, 3) if draw.random() < 0.2 else 0.0 for _ in tokens]
    values[9] = 4.0
    return Example(band, f"dir/{payload[:40]}.py", 11, 9, tuple(tokens), tuple(values))


def write_fixture(path: Path) -> None:
    info = StoreInfo(
        title=TITLE,
        kind="topk",
        n_features=N_FEATURES,
        n_tokens=100_000,
        spec=PointSpec(host="<i>host</i>", point="blocks.0.hook_out", d_model=8),
        logits_note="norm folded",
    )
    write_store(path, info, (entry(feature) for feature in range(N_FEATURES)))
