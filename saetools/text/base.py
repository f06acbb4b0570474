"""Documents and the train / held-out split: the first stage of the data path."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from saetools.errors import DataError

Split = Literal["train", "heldout"]

HELDOUT_PER_MILLE = 150


@dataclass(frozen=True)
class Document:
    """One text with a name that is stable between runs."""

    id: str
    text: str


class Corpus(Protocol):
    """A corpus yields its documents of one split in one order, always the same."""

    @property
    def description(self) -> str:
        """What is read and from where, for messages: `*.py files below /usr/lib/python3.12`."""
        ...

    def documents(self, split: Split) -> Iterator[Document]: ...

    def fingerprint(self) -> str:
        """Identifies the text of both splits: equal fingerprints, equal documents in equal order."""
        ...


@runtime_checkable
class ListedCorpus(Corpus, Protocol):
    """A corpus whose ids are known before anything is read, so that documents can be read in any order.

    Such corpora derive from this class.
    """

    def document_ids(self, split: Split) -> Sequence[str]:
        """Ids of the split in the corpus' order, those of empty documents included."""
        ...

    def document(self, document_id: str) -> Document:
        """The document; its text is empty where it is blank or cannot be read as text."""
        ...

    def documents(self, split: Split) -> Iterator[Document]:
        """The documents that are not empty, in the order of their ids."""
        for document_id in self.document_ids(split):
            document = self.document(document_id)
            if document.text:
                yield document


def split_of(document_id: str) -> Split:
    """The split of a document: held-out for 15 % of ids, by sha256(id) mod 1000."""
    digest = hashlib.sha256(document_id.encode("utf-8", "surrogatepass")).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") % 1000 < HELDOUT_PER_MILLE else "train"


def unreadable(path: Path, error: OSError) -> DataError:
    """What to say of a document's file that was found when the corpus was opened."""
    return DataError(
        f"{path} cannot be read: {error.strerror or error}. A corpus must stay as it is while it is in use."
    )


def sha256_of(value: object) -> str:
    """sha256 of a value's JSON text: what fingerprints in this room are made of."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TokenBatch:
    """One host batch. Its shape is always [B, T], padding included, whatever it holds.

    Window = BOS (where the host wants one) + consecutive tokens of one document; rows of a last, incomplete
    batch are all padding. Every token of a document is in exactly one window.
    """

    number: int  # which batch of its plan: 0, 1, ...
    ids_BT: np.ndarray  # int64 token ids
    keep_BT: np.ndarray  # bool: False at BOS and padding, which are never trained on nor counted
    document_B: np.ndarray  # int64 number of the document in the corpus' order; -1 in an all-padding row
    position_BT: np.ndarray  # int64 position of the token in its document (BOS and padding: -1)


class Tokenize(Protocol):
    """What packing needs to know of a host's tokenizer; hosts provide it."""

    bos_id: int | None
    pad_id: int

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without BOS."""
        ...

    def fingerprint(self) -> str: ...
