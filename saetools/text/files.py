"""Corpora of txt files: one document each."""

from collections.abc import Sequence
from pathlib import Path

from saetools.atomic import hash_file
from saetools.text.base import Document, ListedCorpus, Split, sha256_of, split_of, unreadable


class TextFilesCorpus(ListedCorpus):
    """Each txt file is a document; a listed corpus. Files that are blank or not UTF-8 count as empty."""

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self.root = root
        self._paths = {path.relative_to(root).as_posix(): path for path in files}

    @property
    def description(self) -> str:
        return f"{len(self._paths)} txt files in {self.root} (those that are not UTF-8 count as empty)"

    def document_ids(self, split: Split) -> list[str]:
        return [document_id for document_id in self._paths if split_of(document_id) == split]

    def document(self, document_id: str) -> Document:
        try:
            text = self._paths[document_id].read_text(encoding="utf-8")
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            raise unreadable(self._paths[document_id], error) from error
        return Document(document_id, text if text.strip() else "")

    def fingerprint(self) -> str:
        """sha256 over (id, xxh3-128 of the file)."""
        return sha256_of([[document_id, hash_file(path)] for document_id, path in self._paths.items()])
