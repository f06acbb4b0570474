"""All documents of a corpus as one split: for passes over the whole text, which neither train nor judge anything."""

from collections.abc import Iterator, Sequence
from itertools import chain

from saetools.text.base import Corpus, Document, ListedCorpus, Split


def whole(corpus: Corpus) -> Corpus:
    """The corpus with the documents of both its splits, first those for training, in either split."""
    return _WholeListed(corpus) if isinstance(corpus, ListedCorpus) else _WholeStream(corpus)


class _WholeStream:
    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    @property
    def description(self) -> str:
        return self.corpus.description

    def documents(self, split: Split) -> Iterator[Document]:
        return chain(self.corpus.documents("train"), self.corpus.documents("heldout"))

    def fingerprint(self) -> str:
        return self.corpus.fingerprint()


class _WholeListed(ListedCorpus):
    def __init__(self, corpus: ListedCorpus) -> None:
        self.corpus = corpus

    @property
    def description(self) -> str:
        return self.corpus.description

    def document_ids(self, split: Split) -> Sequence[str]:
        return [*self.corpus.document_ids("train"), *self.corpus.document_ids("heldout")]

    def document(self, document_id: str) -> Document:
        return self.corpus.document(document_id)

    def fingerprint(self) -> str:
        return self.corpus.fingerprint()
