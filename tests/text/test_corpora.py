"""Corpora: the standard library, local files of each kind, and hub names without a network."""

import json
import socket
import time
from pathlib import Path

import datasets
import pytest

from saetools.config import CorpusConfig
from saetools.errors import DataError
from saetools.text.base import Corpus, ListedCorpus, Split, split_of
from saetools.text.corpora import make_corpus
from saetools.text.stdlib import StdlibCorpus
from saetools.text.tables import StreamCorpus

TEXTS = [f"document {number}\nof some lines" for number in range(40)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list:
    """Every look-up of a name fails at once and is written down; caches are empty."""
    attempts: list = []

    def refuse(*arguments, **options):
        attempts.append(arguments)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    return attempts


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def documents(corpus: Corpus) -> dict[str, str]:
    """Documents of both splits; checks that ids, splits and order hang together."""
    found: dict[str, str] = {}
    splits: tuple[Split, Split] = ("train", "heldout")
    for split in splits:
        read = [(document.id, document.text) for document in corpus.documents(split)]
        assert read == [(document.id, document.text) for document in corpus.documents(split)]
        assert all(split_of(document_id) == split for document_id, _ in read)
        if isinstance(corpus, ListedCorpus):
            by_id = [corpus.document(document_id) for document_id in corpus.document_ids(split)]
            assert [(document.id, document.text) for document in by_id if document.text] == read
        found.update(read)
    return found


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_rows_of_a_file(tmp_path: Path, no_network: list, suffix: str, streaming: bool) -> None:
    file = write(tmp_path / f"some{suffix}", [{"text": text, "n": 1} for text in [*TEXTS[:3], "  ", *TEXTS[3:]]])
    corpus = make_corpus(CorpusConfig(name=str(file), streaming=streaming))
    rows = [*range(3), *range(4, 41)]  # row 3 is blank
    assert documents(corpus) == {f"some{suffix}:{row}": text for row, text in zip(rows, TEXTS, strict=True)}
    assert isinstance(corpus, ListedCorpus) != streaming
    assert not no_network, "a local file needs no network"


def test_the_files_of_a_directory(tmp_path: Path) -> None:
    write(tmp_path / "b" / "one.jsonl", [{"body": text} for text in TEXTS[:20]])
    write(tmp_path / "a.jsonl", [{"body": text} for text in TEXTS[20:]])
    (tmp_path / "read.me").write_text("not text")
    config = CorpusConfig(name=str(tmp_path), text_field="body")
    found = documents(make_corpus(config))
    assert found == {f"a.jsonl:{n}": TEXTS[20 + n] for n in range(20)} | {
        f"b/one.jsonl:{n}": TEXTS[n] for n in range(20)
    }
    assert found == documents(make_corpus(config.model_copy(update={"streaming": True})))


def test_txt_files_are_documents(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number:02}.txt").write_text(text)
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("\xe9".encode("latin-1"))
    corpus = make_corpus(CorpusConfig(name=str(tmp_path)))
    assert documents(corpus) == {f"{number:02}.txt": text for number, text in enumerate(TEXTS)}
    (one,) = documents(make_corpus(CorpusConfig(name=str(tmp_path / "07.txt")))).items()
    assert one == ("07.txt", TEXTS[7])


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("text")
    corpora = [make_corpus(CorpusConfig(name=str(tmp_path))), StdlibCorpus(tmp_path)]
    with pytest.raises(DataError, match=r"some.txt cannot be read: No such file"):
        (tmp_path / "some.txt").unlink()
        corpora[0].document("some.txt")
    with pytest.raises(DataError, match=r"gone.py cannot be read: No such file"):
        corpora[1].document("gone.py")


def test_streamed_rows_that_lack_the_column_are_blank() -> None:
    rows = [{"text": "one"}, {"other": "two"}, {"text": "three"}]
    corpus = StreamCorpus({"a": lambda: rows}, "text", "a", "content")
    assert documents(corpus) == {"a:0": "one", "a:2": "three"}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_fingerprint_follows_the_content(tmp_path: Path, streaming: bool) -> None:
    def fingerprint(rows: list[dict], field: str = "text") -> str:
        file = write(tmp_path / "some.jsonl", rows)
        return make_corpus(CorpusConfig(name=str(file), text_field=field, streaming=streaming)).fingerprint()

    rows = [{"text": "one", "other": "x"}, {"text": "two", "other": "y"}]
    assert fingerprint(rows) == fingerprint(rows) != fingerprint(rows[::-1])
    assert fingerprint(rows) != fingerprint(rows, "other")


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_tables_are_named(tmp_path: Path, streaming: bool, caplog: pytest.LogCaptureFixture) -> None:
    def read(file: Path, field: str = "text") -> None:
        documents(make_corpus(CorpusConfig(name=str(file), text_field=field, streaming=streaming)))

    with pytest.raises(DataError, match=r"columns are text, n.*Did you mean \"text\""):
        read(write(tmp_path / "a.jsonl", [{"text": "one", "n": 1}]), "texts")
    with pytest.raises(DataError, match=r"b\.jsonl:0 holds int"):
        read(write(tmp_path / "b.jsonl", [{"text": n} for n in range(30)]))
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(DataError, match=r"c\.jsonl could not be read"):
        read(tmp_path / "c.jsonl")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(DataError, match=r"d\.parquet could not be read"):
        read(tmp_path / "d.parquet")
    (tmp_path / "e.jsonl").touch()
    with pytest.raises(DataError, match=r"e\.jsonl has no bytes"):
        read(tmp_path / "e.jsonl")
    (tmp_path / "f.jsonl").write_bytes(b'{"text": "caf\xe9 and more"}\n')
    with pytest.raises(DataError, match=r"f\.jsonl.*(is not UTF-8|could not be read).*0xe9"):
        read(tmp_path / "f.jsonl")
    assert not caplog.records, "what is raised is not logged too"


def test_directories_without_one_kind_of_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No \.json, .*\.txt file at"):
        make_corpus(CorpusConfig(name=str(tmp_path)))
    write(tmp_path / "a.json", [{"text": "a"}])
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(DataError, match="txt files beside"):
        make_corpus(CorpusConfig(name=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/stories", "cannot be reached.*no downloaded copy.*a local file or stdlib"),
        ("./stories.jsonl", "no such file or directory, and a name at the hub would be NAME or ORGANISATION/NAME"),
        ("~/stories.jsonl", "no such file or directory"),
        ("/no/such/directory", "no such file or directory"),
        ("what is this", "neither a path on this machine nor a name"),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_hub_names_without_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_network: list, name: str, message: str, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    begin = time.monotonic()
    with pytest.raises(DataError, match=message if not offline or name[0] in "./" else name):
        make_corpus(CorpusConfig(name=name))
    assert time.monotonic() - begin < 30, "never a hang (the machine may be slow)"
    assert not (offline and no_network), "HF_HUB_OFFLINE means not to try"


def test_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "pkg" / "test").mkdir(parents=True)
    for name in ("b.py", "pkg/a.py", "pkg/test/skipped.py"):
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "blank.py").write_text("\n\n")
    found = documents(StdlibCorpus(tmp_path))
    assert sorted(found) == ["b.py", "latin.py", "pkg/a.py"]
    assert "é" in found["latin.py"]
    assert str(tmp_path) in StdlibCorpus(tmp_path).description


def test_the_real_standard_library_has_text() -> None:
    corpus = make_corpus(CorpusConfig())
    assert len(next(iter(corpus.documents("heldout"))).text) > 10
    assert isinstance(corpus, ListedCorpus) and len(corpus.document_ids("train")) > 300
