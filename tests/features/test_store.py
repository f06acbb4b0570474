"""What is written is read, without torch; damage is noticed; tables equal sorting in Python."""

import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from toy import SPEC, WORDS, SignedDictionary, ToyHost, ToyPlan, ToySource

from saetools.errors import DataError, FormatError, RunError
from saetools.features.collect import CollectSettings, collect
from saetools.features.effects import cosine_neighbours
from saetools.features.entries import Description, describe
from saetools.features.records import FeatureRecord, StoreInfo
from saetools.features.store import FeatureStore, Filter
from saetools.features.write import Entry, write_store

SETTINGS = CollectSettings(n_top=4, n_random=6, n_uniform=2, before=5, after=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StoreInfo, list[Entry]]:
    plan = ToyPlan(n_batches=12, seed=11)
    dictionary = SignedDictionary()
    collected = collect(dictionary, ToySource(plan), plan, SETTINGS)
    info, entries = describe(collected, dictionary, SPEC, ToyHost(), Description("toy"))
    kept = list(entries)
    path = tmp_path_factory.mktemp("store") / "features"
    write_store(path, info, kept)
    return path, info, kept


@pytest.fixture
def store(written: tuple[Path, StoreInfo, list[Entry]]) -> FeatureStore:
    return FeatureStore.open(written[0])


def test_round_trip(written: tuple[Path, StoreInfo, list[Entry]], store: FeatureStore) -> None:
    _, info, entries = written
    assert store.info == info and "norm's weight" in info.logits_note
    for entry in entries:
        assert store.feature(entry.record.feature) == entry.record
        assert store.examples(entry.record.feature) == entry.examples
    live = entries[0].record
    assert live.jaccard and live.decoder_neighbours and live.encoder_neighbours and live.map_xy and live.logits
    assert {weight.token for weight in live.logits.top} <= set(WORDS)
    _, nearest_FJ = cosine_neighbours(SignedDictionary().encoder_directions(), 20)
    assert [neighbour.feature for neighbour in live.encoder_neighbours] == nearest_FJ[live.feature].tolist()
    assert all(entry.record.density == pytest.approx(entry.record.count / info.n_tokens) for entry in entries)
    assert all((entry.record.max_value is None) == (entry.record.count == 0) for entry in entries)


def test_a_table_is_sorted_filtered_and_paged(
    written: tuple[Path, StoreInfo, list[Entry]], store: FeatureStore
) -> None:
    records = [entry.record for entry in written[2]]

    def key(record: FeatureRecord, name: str, sign: int) -> tuple:
        value = getattr(record, name)
        return (value is None, 0 if value is None else sign * value, record.feature)

    for name in ("feature", "density", "mean", "kurtosis", "max_value", "n_contexts"):
        for sign, prefix in ((1, ""), (-1, "-")):
            expected = [r.feature for r in sorted(records, key=lambda r, n=name, s=sign: key(r, n, s))]
            pages = [store.table(prefix + name, offset=offset, limit=5) for offset in (0, 5, 10)]
            assert [row.feature for page in pages for row in page.rows] == expected
            assert all(page.total == len(records) for page in pages)
    dense = Filter(text="density>=0.2 max<1e3 count<=1000000")
    assert {r.feature for r in store.table(filter=dense).rows} == {r.feature for r in records if r.density >= 0.2}
    assert store.table(filter=dense).total == sum(r.density >= 0.2 for r in records)
    spaced = Filter(text="density >= 0.2  max <1e3 count<= 1000000")
    assert store.table(filter=spaced).rows == store.table(filter=dense).rows
    assert store.table(filter=Filter(text="densty > 0.2")).total == 0, "words"
    assert [r.feature for r in store.table("feature", Filter(features=[3, 1])).rows] == [1, 3]
    assert store.table(filter=Filter(text="density<0 e")).total == 0
    assert store.table(filter=Filter(text="densty<0")).total == 0, "of no column: words"
    with pytest.raises(DataError, match="Did you mean"):
        store.table("densty")


def test_columns_are_in_the_order_of_features(
    written: tuple[Path, StoreInfo, list[Entry]], store: FeatureStore
) -> None:
    columns = store.columns("density", "mean", "x")
    for entry in written[2]:
        record = entry.record
        assert columns["density"][record.feature] == record.density
        assert math.isnan(columns["mean"][record.feature]) == (record.mean is None)
        assert columns["x"][record.feature] == record.map_xy[0]


@pytest.mark.parametrize(
    "text",
    ['"', "''; DROP TABLE features", "a OR b", "NEAR(", "*", "\0", "(", "日本", "-", "9" * 30, "9" * 5000, "\ud800"],
)
def test_any_text_may_be_searched(store: FeatureStore, text: str) -> None:
    assert store.table(filter=Filter(text=text)).total >= 0
    assert store.table().total == 12


def test_what_is_too_long_to_search_is_refused(store: FeatureStore) -> None:
    """SQLite ends such expressions, which was told as a directory without room."""
    for word in ("+", "a", "max<3"):
        with pytest.raises(DataError, match="at most 200 words"):
            store.table(filter=Filter(text=f"{word} " * 201))
        assert store.table(filter=Filter(text=f"{word} " * 200)).total >= 0


def test_features_without_a_label_come_last_by_label(
    written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path
) -> None:
    """In the order of features; so do all before there are any labels."""
    _, info, entries = written
    write_store(tmp_path / "s", info, entries)
    with closing(FeatureStore.open(tmp_path / "s")) as store:
        order = list(range(12))
        for sort in ("label", "-label"):
            assert [row.feature for row in store.table(sort).rows] == order
        store.annotate(7, "beta")
        store.annotate(2, "alpha")
        store.annotate(3, "", "a note alone")
        rest = [feature for feature in order if feature not in (2, 7)]
        assert [row.feature for row in store.table("label").rows] == [2, 7, *rest]
        assert [row.feature for row in store.table("-label").rows] == [7, 2, *rest]


def test_search_finds_contexts_and_labels(written: tuple[Path, StoreInfo, list[Entry]], store: FeatureStore) -> None:
    found = {row.feature for row in store.table(filter=Filter(text="_nam")).rows}
    with_name = {
        entry.record.feature
        for entry in written[2]
        if any("_name" in "".join(e.tokens) for e in entry.examples if e.band == "top")
        or any(w.token == "_name" for w in entry.record.logits.top)
    }
    assert found and found <= with_name
    across = {row.feature for row in store.table(filter=Filter(text="defx")).rows}  # two tokens: of no logit
    tops = {e.record.feature: ["".join(x.tokens) for x in e.examples if x.band == "top"] for e in written[2]}
    assert across and all(any("defx" in text for text in tops[feature]) for feature in across)
    store.annotate(4, "Zebra stripes", "see <b>")
    assert [row.feature for row in store.table(filter=Filter(text="zebra str")).rows] == [4]
    assert store.table("-label").rows[0].label == "Zebra stripes"
    assert FeatureStore.open(written[0]).annotation(4) == ("Zebra stripes", "see <b>")
    assert store.annotations() == {4: ("Zebra stripes", "see <b>")}
    store.annotate(4, "")
    assert store.annotation(4) == ("", "") and not store.table(filter=Filter(text="zebra")).rows
    store.set_list("odd", [1, 3, 1])
    assert [row.feature for row in store.table("feature", Filter(features=store.lists()["odd"])).rows] == [1, 3]
    store.set_list("odd", [])
    assert store.lists() == {}


def test_search_finds_signs_where_they_tell_features_apart(
    written: tuple[Path, StoreInfo, list[Entry]], store: FeatureStore
) -> None:
    """In the top token and the top logit, as they are; `=` and `<b>` are of the toy's words."""
    rows = store.table(limit=100).rows
    for sign in ("=", "<", "%"):
        expected = {row.feature for row in rows if sign in f"{row.peak_token} {row.top_logit}"}
        assert {row.feature for row in store.table(filter=Filter(text=sign)).rows} == expected
        assert (sign == "%") == (not expected)
        both = store.table(filter=Filter(text=f"{sign} _name")).rows
        assert {row.feature for row in both} == expected & {
            row.feature for row in store.table(filter=Filter(text="_name")).rows
        }
    store.annotate(4, "%")
    assert [row.feature for row in store.table(filter=Filter(text="%")).rows] == [4]
    store.annotate(4, "")


def test_labels_survive_a_new_store(written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path) -> None:
    _, info, entries = written
    write_store(tmp_path / "s", info, entries)
    FeatureStore.open(tmp_path / "s").annotate(2, "kept")
    write_store(tmp_path / "s", info, iter(entries))
    assert FeatureStore.open(tmp_path / "s").annotation(2) == ("kept", "")


def test_labels_lie_beside_the_store_wherever_one_stands(
    written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, info, entries = written
    write_store(tmp_path / "s" / "t", info, entries)
    for here, named in (("s/t", "."), ("s", "t"), ("s/t", "../t"), (".", "s/t/")):
        monkeypatch.chdir(tmp_path / here)
        with closing(FeatureStore.open(named)) as store:
            monkeypatch.chdir("/")
            store.annotate(2, f"from {here}")
        assert [path.name for path in (tmp_path / "s").glob("*.sqlite")] == ["t.annotations.sqlite"]
        with closing(FeatureStore.open(tmp_path / "s" / "t")) as store:
            assert store.annotation(2) == (f"from {here}", "")


def test_labels_of_another_are_seen_at_once(written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path) -> None:
    """Also the first, by a store that was opened before there was any."""
    _, info, entries = written
    write_store(tmp_path / "s", info, entries)
    mine, other = (FeatureStore.open(tmp_path / "s") for _ in range(2))
    assert mine.annotations() == {} and mine.annotation(2) == ("", "") and not list(tmp_path.glob("*annotations*"))
    other.annotate(2, "theirs")
    assert mine.annotation(2) == ("theirs", "") and mine.table("-label").rows[0].label == "theirs"
    mine.set_list("few", [1])
    assert other.lists() == {"few": [1]}


def test_several_write_labels_at_once(written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path) -> None:
    """Each waits for the other: who held a lock to read while the other wrote had failed at once."""
    _, info, entries = written
    write_store(tmp_path / "s", info, entries)

    def write(person: int) -> None:
        with closing(FeatureStore.open(tmp_path / "s")) as store:
            for feature in range(person, 12, 3):
                store.annotate(feature, f"of {person}")
                store.set_list(f"of {person}", range(feature + 1))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    with closing(FeatureStore.open(tmp_path / "s")) as store:
        assert store.annotations() == {feature: (f"of {feature % 3}", "") for feature in range(12)}
        assert store.lists() == {f"of {person}": list(range(10 + person)) for person in range(3)}


def test_labels_that_could_not_be_made_can_be_tried_again(
    written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, info, entries = written
    write_store(tmp_path / "s", info, entries)
    monkeypatch.setattr("saetools.features.store.MAX_WAIT_SECONDS", 0.01)
    with closing(FeatureStore.open(tmp_path / "s")) as store:
        with closing(sqlite3.connect(store._annotations_path)) as other:
            other.execute("BEGIN EXCLUSIVE")
            for _ in range(2):
                with pytest.raises(RunError, match="locked"):
                    store.annotate(2, "mine")
        store.annotate(2, "mine")
        assert store.annotations() == {2: ("mine", "")}


def test_an_open_store_outlives_a_new_one(
    written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with what it was opened on; who opens now gets the new one."""
    _, info, entries = written
    write_store(tmp_path / "s", info, entries)
    before = FeatureStore.open(tmp_path / "s")
    write_store(tmp_path / "s", info, [Entry(entry.record, entry.examples[::-1]) for entry in entries])
    after = FeatureStore.open(tmp_path / "s")
    for entry in entries:
        assert before.examples(entry.record.feature) == entry.examples
        assert after.examples(entry.record.feature) == entry.examples[::-1]
        assert before.feature(entry.record.feature) == entry.record
    before.close()
    monkeypatch.setattr("saetools.features.store._verify", lambda path: write_store(path, info, entries))
    with pytest.raises(RunError, match="Open it again"):
        FeatureStore.open(tmp_path / "s")


def test_unknown_features_and_damage_are_named(written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path) -> None:
    _, info, entries = written
    path = tmp_path / "s"
    write_store(path, info, entries)
    store = FeatureStore.open(path)
    for call in (store.feature, store.examples, store.annotation, lambda number: store.annotate(number, "x")):
        for number in (12, -1, np.int64(12), 2**70):
            with pytest.raises(DataError, match="0 to 11"):
                call(number)
        for number in ("3", 3.0, None):
            with pytest.raises(DataError, match="whole number"):
                call(number)
    assert store.annotations() == {} and not store._annotations_path.exists()
    shard = path / "examples-00000.bin"
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match=r"examples-00000\.bin is missing"):
        FeatureStore.open(path).examples(0)
    (tmp_path / "elsewhere").rename(shard)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=r"examples-00000\.bin"):
        for feature in range(12):
            store.examples(feature)
    database = path / "features.sqlite"
    database.write_bytes(database.read_bytes()[:-4096])
    before = psutil.Process().num_fds()
    with pytest.raises(FormatError, match=r"features\.sqlite") as caught:
        FeatureStore.open(path)
    assert caught.tb is not None and psutil.Process().num_fds() == before, "while the error is looked at, too"
    with pytest.raises(FormatError, match="not a feature store"):
        FeatureStore.open(tmp_path)


def test_numbers_of_numpy_and_torch_are_numbers(written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path) -> None:
    """An argmax is what people look up; SQLite takes a numpy integer for bytes, and finds nothing."""
    _, info, entries = written
    write_store(tmp_path / "s", info, entries)
    store = FeatureStore.open(tmp_path / "s")
    for number in (np.int64(3), np.uint8(3), torch.tensor(3)):
        assert store.feature(number) == store.feature(3) and store.examples(number) == store.examples(3) != []
        store.annotate(number, "found")
        assert store.annotation(number) == ("found", "") and store.annotations() == {3: ("found", "")}
        store.set_list("few", [number, 1])
        assert store.lists() == {"few": [1, 3]}


def test_labels_of_any_letters(written: tuple[Path, StoreInfo, list[Entry]], tmp_path: Path) -> None:
    _, info, entries = written
    write_store(tmp_path / "s", info, entries)
    store = FeatureStore.open(tmp_path / "s")
    store.annotate(3, "\u00dcbung", "half \ud800")
    store.set_list("\ud800", [1])
    assert store.annotation(3) == ("\u00dcbung", "half ?") and store.lists() == {"?": [1]}
    for asked in ("\u00fcbung", "\u00dcBUNG", "HALF"):
        assert [row.feature for row in store.table(filter=Filter(text=asked)).rows] == [3], asked


def test_without_a_host_there_are_rows_and_no_logits(tmp_path: Path) -> None:
    plan, dictionary = ToyPlan(), SignedDictionary()
    info, entries = describe(
        collect(dictionary, ToySource(plan), None, SETTINGS), dictionary, SPEC, None, Description("rows")
    )
    write_store(tmp_path / "s", info, entries)
    store = FeatureStore.open(tmp_path / "s")
    assert store.feature(0).logits is None and store.feature(0).histogram.positive
    top = store.examples(0)[0]
    assert (
        top.band == "top" and top.tokens == (f"row {top.position}",) and store.table().rows[0].peak_token[:4] == "row "
    )
    _, entries = describe(
        collect(dictionary, ToySource(plan), plan, SETTINGS), dictionary, SPEC, None, Description("x")
    )
    assert next(iter(entries)).examples == [], "tokens of which nobody knows the text"
