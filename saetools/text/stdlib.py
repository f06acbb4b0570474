"""The corpus `stdlib`: the sources of the Python standard library on this machine.

Real text that every machine has, so that the first run needs no download. Its content differs between
Python versions; the fingerprint tells which text a figure belongs to.
"""

import hashlib
import os
import sysconfig
import tokenize
from functools import cached_property
from pathlib import Path

from saetools.text.base import Document, ListedCorpus, Split, split_of, unreadable

SKIPPED_DIRECTORIES = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "encodings",
        "pydoc_data",
        "lib2to3",
        "idlelib",
        "__pycache__",
    }
)


class StdlibCorpus(ListedCorpus):
    """Every readable `*.py` below the standard library's root, ordered by its path relative to that root."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or sysconfig.get_path("stdlib"))

    @cached_property
    def ids(self) -> list[str]:
        """Paths relative to the root with `/`, sorted; undecodable and empty files are left out when read."""
        found = []
        for folder, below, files in os.walk(self.root):
            below[:] = set(below) - SKIPPED_DIRECTORIES
            found += [Path(folder, name).relative_to(self.root).as_posix() for name in files if name.endswith(".py")]
        return sorted(found)

    @property
    def description(self) -> str:
        return f"the Python standard library's *.py files below {self.root}"

    def document_ids(self, split: Split) -> list[str]:
        return [document_id for document_id in self.ids if split_of(document_id) == split]

    def document(self, document_id: str) -> Document:
        """The document in the encoding that it declares; empty where it is blank or does not decode."""
        try:
            with tokenize.open(self.root / document_id) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            text = ""
        except OSError as error:
            raise unreadable(self.root / document_id, error) from error
        return Document(document_id, text if text.strip() else "")

    def fingerprint(self) -> str:
        """sha256 over (id, text) of every document of both splits, in order. Read once per object."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split in ("train", "heldout"):
            for document in self.documents(split):
                for part in (document.id, document.text):
                    data = part.encode("utf-8", "surrogatepass")
                    digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()
