"""A corpus as one split holds every document of both, once."""

import json
from pathlib import Path

from saetools.config import CorpusConfig
from saetools.text.corpora import make_corpus
from saetools.text.whole import whole


def test_every_document_once(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = make_corpus(CorpusConfig(name=str(tmp_path / "a.jsonl")))
    parts = [len(list(corpus.documents(split))) for split in ("train", "heldout")]
    assert min(parts) > 0 and sum(parts) == 60
    together = whole(corpus)
    for split in ("train", "heldout"):
        assert sorted(d.text for d in together.documents(split)) == sorted(texts)
    assert together.fingerprint() == corpus.fingerprint() and together.description == corpus.description


def test_listed_corpora_stay_listed() -> None:
    corpus = make_corpus(CorpusConfig(name="stdlib"))
    together = whole(corpus)
    ids = together.document_ids("heldout")
    assert len(set(ids)) == len(ids)
    assert set(ids) == {*corpus.document_ids("train"), *corpus.document_ids("heldout")}
    assert together.document(ids[0]).text == corpus.document(ids[0]).text
