"""How large pages are, with contexts as long and as many as a real store has."""

import random
from pathlib import Path

import numpy as np
import pytest

from saetools.dashboard.comparison import Comparison
from saetools.dashboard.curves import training_curves
from saetools.dashboard.export import Contents, export_folder, export_page
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
from saetools.features.store import FeatureStore
from saetools.features.write import Entry, write_store
from saetools.records import PointSpec

MEGABYTE, KILOBYTE = 10**6, 10**3
WORDS = [path.stem for path in sorted(Path(random.__file__).parent.glob("*.py"))]
CURVES = training_curves([{"n_tokens": 1000 * i + 1000, "loss": 1 / (i + 1), "l0": 32.0} for i in range(100)])


def entry(feature: int, n_features: int) -> Entry:
    """As many contexts, neighbours and bins as a store of the demo has; text without the repeats that real text has."""
    draw = random.Random(feature)

    def token() -> str:
        return f" {draw.choice(WORDS)[:5]}"

    def example(band: str) -> Example:
        values = tuple(draw.uniform(0, 9) if draw.random() < 0.1 else 0.0 for _ in range(63))
        tokens = tuple(token() for _ in range(64))
        return Example(band, f"{token()}/{token()}.py", draw.randrange(9999), 40, tokens, (*values, 9.0))

    neighbours = tuple(Neighbour(feature=draw.randrange(n_features), value=draw.random()) for _ in range(20))
    weights = tuple(TokenWeight(token=token(), weight=draw.uniform(-1, 1)) for _ in range(10))
    counts = tuple(draw.randrange(1000) for _ in range(40))
    record = FeatureRecord(
        feature=feature,
        count=9 + feature,
        density=draw.uniform(1e-5, 0.1),
        mean=draw.random(),
        max_value=9.0,
        n_contexts=9,
        histogram=Histogram(first=180, positive=counts),
        logits=LogitEffect(top=weights, bottom=weights, low=-1.1, high=1.3, counts=counts),
        **dict.fromkeys(("decoder_neighbours", "encoder_neighbours", "jaccard", "pmi", "pearson"), neighbours),
        map_xy=(draw.random(), draw.random()),
    )
    per_band = {"top": 20, "uniform": 5}
    return Entry(record, [example(band) for band in BAND_TITLES for _ in range(per_band.get(band, 5))])


def everything(path: Path, n_features: int) -> Contents:
    """All features of a store made at `path`, with curves and a comparison."""
    spec = PointSpec(host="host", point="blocks.0.hook_out", d_model=8)
    info = StoreInfo(title="sizes", kind="topk", n_features=n_features, n_tokens=10**6, spec=spec)
    write_store(path, info, (entry(feature, n_features) for feature in range(n_features)))
    store = FeatureStore.open(path)
    comparison = Comparison("other", np.roll(np.arange(n_features), 1), np.ones(n_features), store)
    return Contents(store, n_features=None, curves=CURVES, comparison=comparison)


@pytest.mark.parametrize("n_features", [2, 40])
def test_a_page_with_everything(tmp_path: Path, n_features: int) -> None:
    export_page(everything(tmp_path / "features", n_features), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size <= 5.5 * MEGABYTE + 25 * KILOBYTE * n_features


@pytest.mark.slow
def test_a_folder_of_a_thousand_with_everything(tmp_path: Path) -> None:
    export_folder(everything(tmp_path / "features", 1000), tmp_path / "folder")
    files = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    assert len(list((tmp_path / "folder" / "features").iterdir())) == 1000
    assert sum(path.stat().st_size for path in files) <= 30 * MEGABYTE
