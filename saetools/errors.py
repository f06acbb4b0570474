"""Errors that a user can cause. Each message says what came, what is allowed and what to do."""

import difflib
from collections.abc import Iterable


class SaetoolsError(ValueError):
    """Base of all errors for users; the command line prints its message alone and exits with 2."""


class ConfigError(SaetoolsError):
    """A configuration that cannot be run."""


class PointError(SaetoolsError):
    """A hook point that the host does not have."""


class DataError(SaetoolsError):
    """Text, rows or activations that cannot be used."""


class FormatError(SaetoolsError):
    """A file or directory that is missing, damaged or of an unknown layout."""


class MismatchError(SaetoolsError):
    """A dictionary, host, store or run that do not belong together."""


class RunError(SaetoolsError):
    """A run directory that cannot be used, or a run that cannot go on."""


def printable(text: str) -> str:
    r"""Text for a terminal: what would move its cursor, colour it or reorder it stands as an escape.

    >>> printable("a\x1b[31m\n")
    'a\\x1b[31m\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` for the known name closest to `name`, or an empty string when none is close.

    >>> nearest("topl", ["topk", "gated"])
    ' Did you mean "topk"?'
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{matches[0]}"?' if matches else ""
