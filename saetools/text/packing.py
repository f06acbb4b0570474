"""Packing documents into host batches: a fixed plan that can be entered at any batch.

Batch i of an epoch is a pure function of the corpus, the tokenizer and the plan's parameters; every epoch repeats
the same batches. Nothing is stored but one count per document, so memory is bounded by a few documents.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from threading import Lock

import numpy as np

from saetools.errors import ConfigError, DataError
from saetools.rng import generator
from saetools.text.base import Corpus, Document, ListedCorpus, Split, TokenBatch, Tokenize, sha256_of

_logger = logging.getLogger(__name__)
DOCUMENTS_PER_CALL = 32
CHARACTERS_PER_CALL = 1_000_000

HELDOUT_ORDER = 0  # key of the order of held-out documents, whatever the run's seed


@dataclass(frozen=True)
class _Window:
    """At most T consecutive tokens of one document, BOS not included."""

    document: int
    position: int  # of the first token in its document
    ids: list[int]


class _WindowCounts:
    """How many windows the documents of an epoch make, as far as they were tokenized; shared by threads."""

    def __init__(self) -> None:
        self._ends: list[int] = []  # windows of documents 0..j in plan order
        self._complete = False
        self._lock = Lock()

    def locate(self, window: int) -> tuple[int, int]:
        """(j, windows before j): the document with this window, or the first one not counted yet."""
        with self._lock:
            j = bisect_right(self._ends, window)
            return j, self._ends[j - 1] if j else 0

    def record(self, j: int, end: int) -> bool:
        """Count document j; False when it was counted otherwise before."""
        with self._lock:
            if j == len(self._ends):
                self._ends.append(end)
            return self._ends[j] == end

    def finish(self) -> None:
        self._complete = True

    @property
    def total(self) -> int | None:
        """Windows of an epoch; None until one epoch was passed."""
        if not self._complete:
            return None
        return self._ends[-1] if self._ends else 0


class TokenPlan:
    """The fixed sequence of host batches of one split.

    A window is BOS (where `prepend_bos` and the tokenizer has one) and up to T or T - 1 consecutive tokens of one
    document; a batch is `host_batch` consecutive windows. Each token of each document is in exactly one window.
    Where the corpus lists its documents they are read in a permutation, keyed by the seed for the train split and
    the same for all seeds for the held-out split, so that an evaluation of the first n tokens is of mixed documents
    and two runs are judged on the same ones; otherwise in the corpus' order. `max_documents` keeps the first ones of
    the corpus' order. Raises ConfigError where no token fits beside BOS, DataError where the split has no text.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenize: Tokenize,
        split: Split,
        context_tokens: int,
        host_batch: int,
        seed: int,
        prepend_bos: bool,
        max_documents: int | None = None,
    ) -> None:
        self.corpus, self.tokenize, self.split = corpus, tokenize, split
        self.context_tokens, self.host_batch, self.seed = context_tokens, host_batch, seed
        self._bos_id = tokenize.bos_id if prepend_bos else None
        self.prepend_bos = self._bos_id is not None
        self.max_documents = max_documents
        self._width = context_tokens - self.prepend_bos
        if self._width < 1 or host_batch < 1:
            raise ConfigError(
                f"A batch of {host_batch} windows of {context_tokens} tokens holds no token of a text"
                f"{' beside BOS' if self.prepend_bos else ''}: raise corpus.context_tokens or activations.host_batch."
            )
        self._listed = corpus if isinstance(corpus, ListedCorpus) else None
        self._counts = _WindowCounts()
        self._repeats = False  # whether it was said that training reads the text again
        self._streamed_ids: list[str] = []  # of streams: ids met so far, by document number

    @property
    def n_batches(self) -> int | None:
        """Batches in an epoch; None until the end of one was reached."""
        total = self._counts.total
        return None if total is None else -(-total // self.host_batch)

    def batches(self, start: int = 0) -> Iterator[TokenBatch]:
        """Batches start, start + 1, ...: for ever on the train split, to the end of the held-out one.

        Equal to what `batches()` gives from there on. Documents before `start` are tokenized again only where this
        object has not counted them yet.
        """
        number = start
        while True:
            index = number if self.n_batches is None or self.split == "heldout" else number % self.n_batches
            for windows in self._epoch(index):
                yield self._pack(number, windows)
                number += 1
            if not self._counts.total:
                raise DataError(
                    f"No text in the {self.split} split of the corpus: looked for {self.corpus.description}"
                    f"{self._limit_note()}. Name another corpus, or add documents (15 % of ids are held out)."
                )
            if self.split == "heldout":
                return
            if not self._repeats:
                _logger.info("all %d windows of text were read once; they are read again", self._counts.total)
                self._repeats = True

    def document_id(self, number: int) -> str:
        """The id of the document with this number in `TokenBatch.document_B`."""
        if self._listed is not None:
            return self._listed_ids[number]
        while number >= len(self._streamed_ids):
            known = len(self._streamed_ids)
            if not any(True for _ in islice(self._streamed(known), number + 1 - known)):
                raise DataError(f"The {self.split} split has {known} documents; there is no document {number}.")
        return self._streamed_ids[number]

    def document(self, number: int) -> Document | None:
        """The document itself where the corpus can read one by its id; None for streams."""
        return None if self._listed is None else self._listed.document(self._listed_ids[number])

    def fingerprint(self) -> str:
        """sha256 of all that decides the batches: equal fingerprints, equal batches."""
        parts = {
            "corpus": self.corpus.fingerprint(),
            "tokenizer": self.tokenize.fingerprint(),
            "split": self.split,
            "context_tokens": self.context_tokens,
            "host_batch": self.host_batch,
            "order": self._order_seed,
            "prepend_bos": self.prepend_bos,
            "max_documents": self.max_documents,
        }
        return sha256_of(parts)

    # --- documents ------------------------------------------------------------------------------------------

    @cached_property
    def _listed_ids(self) -> Sequence[str]:
        return () if self._listed is None else self._listed.document_ids(self.split)

    @property
    def _order_seed(self) -> int | None:
        """Key of the permutation of documents; None in the corpus' order."""
        if self._listed is None:
            return None
        return self.seed if self.split == "train" else HELDOUT_ORDER

    @cached_property
    def _order(self) -> np.ndarray:
        """Document numbers in plan order, for listed corpora."""
        n = min(len(self._listed_ids), self.max_documents or len(self._listed_ids))
        seed = self._order_seed
        return np.arange(n) if seed is None else generator(seed, "document order").permutation(n)

    def _documents(self, first: int) -> Iterator[tuple[int, Document]]:
        """(number, document) in plan order from place `first` on."""
        if self._listed is None:
            yield from self._streamed(first)
            return
        for number in self._order[first:].tolist():
            yield number, self._listed.document(self._listed_ids[number])

    def _streamed(self, first: int) -> Iterator[tuple[int, Document]]:
        for number, document in enumerate(islice(self.corpus.documents(self.split), self.max_documents)):
            if number == len(self._streamed_ids):
                self._streamed_ids.append(document.id)
            if number >= first:
                yield number, document

    def _limit_note(self) -> str:
        return f", its first {self.max_documents} documents" if self.max_documents else ""

    # --- tokens and windows ---------------------------------------------------------------------------------

    def _token_lists(self, first: int) -> Iterator[tuple[int, list[int]]]:
        """(number, all its tokens) of each document from place `first` on, tokenized a few documents at a time."""
        numbers: list[int] = []
        texts: list[str] = []
        for number, document in self._documents(first):
            numbers.append(number)
            texts.append(document.text)
            if len(texts) == DOCUMENTS_PER_CALL or sum(map(len, texts)) >= CHARACTERS_PER_CALL:
                yield from zip(numbers, self.tokenize.encode(texts), strict=True)
                numbers, texts = [], []
        if texts:
            yield from zip(numbers, self.tokenize.encode(texts), strict=True)

    def _windows(self, first: int) -> Iterator[_Window]:
        """Windows of an epoch from number `first` on. Counts each document that it passes."""
        j, begin = self._counts.locate(first)
        for number, ids in self._token_lists(j):
            end = begin - (-len(ids) // self._width)  # plus the windows, rounded up
            if not self._counts.record(j, end):
                raise DataError(
                    f"Document {self.document_id(number)!r} changed while it was in use, so that batches would no "
                    f"longer be the same: {self.corpus.description} must stay as it is during a run."
                )
            for window in range(max(first, begin), end):
                position = (window - begin) * self._width
                yield _Window(number, position, ids[position : position + self._width])
            j, begin = j + 1, end
        self._counts.finish()

    def _epoch(self, index: int) -> Iterator[list[_Window]]:
        windows = self._windows(index * self.host_batch)
        while batch := list(islice(windows, self.host_batch)):
            yield batch

    def _pack(self, number: int, windows: list[_Window]) -> TokenBatch:
        shape = (self.host_batch, self.context_tokens)
        ids_BT = np.full(shape, self.tokenize.pad_id, np.int64)
        keep_BT = np.zeros(shape, bool)
        document_B = np.full(self.host_batch, -1, np.int64)
        position_BT = np.full(shape, -1, np.int64)
        offset = self.context_tokens - self._width
        for row, window in enumerate(windows):
            columns = slice(offset, offset + len(window.ids))
            if self._bos_id is not None:
                ids_BT[row, 0] = self._bos_id
            ids_BT[row, columns] = window.ids
            keep_BT[row, columns] = True
            document_B[row] = window.document
            position_BT[row, columns] = np.arange(window.position, window.position + len(window.ids))
        return TokenBatch(number, ids_BT, keep_BT, document_B, position_BT)
