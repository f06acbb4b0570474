"""Corpora whose documents are rows of tables, read at will or as a stream.

Ids are `<table>:<row>`; the tables themselves come from `text/hub.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeGuard, overload

import numpy as np

from saetools.errors import DataError, nearest
from saetools.text.base import Document, ListedCorpus, Split, sha256_of, split_of


class Table(Protocol):
    """What is needed of a table; `datasets.Dataset` is one."""

    @property
    def column_names(self) -> list[str]:
        """Names of its columns."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Mapping[str, Any]: ...


class RowIds(Sequence[str]):
    """Ids `<prefix>:<row>` of some rows of consecutive tables, made when asked for: 8 bytes each in memory."""

    def __init__(self, prefixes: Sequence[str], begins: np.ndarray, rows: np.ndarray) -> None:
        self._prefixes, self._begins, self._rows = prefixes, begins, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "RowIds": ...
    def __getitem__(self, index: int | slice) -> "str | RowIds":
        if isinstance(index, slice):
            return RowIds(self._prefixes, self._begins, self._rows[index])
        row = int(self._rows[index])
        table = int(np.searchsorted(self._begins, row, side="right")) - 1
        return f"{self._prefixes[table]}:{row - self._begins[table]}"


class TableCorpus(ListedCorpus):
    """The rows of tables that lie on this machine; a listed corpus with the ids `<table>:<row>`."""

    def __init__(self, tables: Mapping[str, Table], text_field: str, source: str, content: object) -> None:
        for table in tables.values():
            _check_column(table.column_names, text_field, source)
        self._tables = {name: table for name, table in tables.items() if len(table)}
        self._text_field, self._source, self._content = text_field, source, content

    @property
    def description(self) -> str:
        return f"rows of {self._source}, column {self._text_field!r}"

    def document_ids(self, split: Split) -> RowIds:
        return self._ids[split]

    def document(self, document_id: str) -> Document:
        name, _, row = document_id.rpartition(":")
        try:
            text = self._tables[name][int(row)][self._text_field]
        except UnicodeDecodeError as error:  # Arrow takes a string's bytes as they are in the file
            raise DataError(f"{document_id} of {self._source} is not UTF-8: {error}. Convert the file.") from error
        return Document(document_id, text if _is_text(text, document_id, self._text_field) else "")

    def fingerprint(self) -> str:
        return sha256_of(["tables", self._content, self._text_field])

    @cached_property
    def _ids(self) -> dict[Split, RowIds]:
        """Ids of both splits; hashing an id takes about a microsecond."""
        names, lengths = list(self._tables), [len(table) for table in self._tables.values()]
        begins = np.cumsum([0, *lengths[:-1]])
        is_heldout = np.fromiter(
            (
                split_of(f"{name}:{row}") == "heldout"
                for name, n in zip(names, lengths, strict=True)
                for row in range(n)
            ),
            dtype=bool,
            count=sum(lengths),
        )
        return {
            "train": RowIds(names, begins, np.flatnonzero(~is_heldout)),
            "heldout": RowIds(names, begins, np.flatnonzero(is_heldout)),
        }


class StreamCorpus:
    """Rows in the order in which they come, never all at once; not a listed corpus."""

    def __init__(
        self,
        streams: Mapping[str, Callable[[], Iterable[Mapping[str, Any]]]],
        text_field: str,
        source: str,
        content: object,
    ) -> None:
        self._streams, self._text_field, self._source, self._content = streams, text_field, source, content

    @property
    def description(self) -> str:
        return f"streamed rows of {self._source}, column {self._text_field!r}"

    def documents(self, split: Split) -> Iterator[Document]:
        for name, open_stream in self._streams.items():
            for row, columns in enumerate(open_stream()):
                if row == 0:
                    _check_column(list(columns), self._text_field, self._source)
                document_id, text = f"{name}:{row}", columns.get(self._text_field)  # later rows may lack it
                if split_of(document_id) == split and _is_text(text, document_id, self._text_field):
                    yield Document(document_id, text)

    def fingerprint(self) -> str:
        return sha256_of(["stream", self._content, self._text_field])


def _check_column(columns: Sequence[str] | None, text_field: str, source: str) -> None:
    if columns is not None and text_field not in columns:
        raise DataError(
            f"{source} has no column {text_field!r} (corpus.text_field); its columns are "
            f"{', '.join(columns)}.{nearest(text_field, columns)}"
        )


def _is_text(value: object, document_id: str, text_field: str) -> TypeGuard[str]:
    """Whether there is text that is not blank; null counts as blank, any other type is a DataError."""
    if value is None:
        return False
    if not isinstance(value, str):
        raise DataError(f"Column {text_field!r} of {document_id} holds {type(value).__name__}, not text.")
    return bool(value.strip())
