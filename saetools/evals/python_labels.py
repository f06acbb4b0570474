"""Exact classes of the characters of a Python source: what a token is, by `tokenize` and `ast`, without a download.

A class is a set of half-open character spans. `bool_C` of a text at a character says which classes hold there.
"""

import ast
import io
import keyword
import re
import token as token_types
import tokenize
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

CLASSES = (
    "keyword",
    "comment",
    "docstring",
    "string",
    "number",
    "operator",
    "defined_name",
    "parameter",
    "attribute",
    "self",
    "call_argument",
    "import",
    "decorator",
    "annotation",
    "nested",
)
"""keyword: reserved word; string: literal that is no docstring; defined_name: NAME after def or class; attribute: NAME
after a dot; call_argument: inside the parentheses of a call; annotation: of parameters, results and variables; nested:
on a logical line indented by two levels or more."""

Span = tuple[int, int]

_UP_TO_ARGUMENTS = re.compile(r"(?:[\s)\\]|#[^\n]*+)*+\(")
"""What may stand between the end of a called expression and its arguments: `(f)(`, `f (`, a comment in between."""


def class_spans(text: str) -> dict[str, list[Span]] | None:
    """The spans of each class in CLASSES; None where the text is no Python that this interpreter parses."""
    if "\r" in text.replace("\r\n", ""):  # a lone one ends a line for `ast` and not for `tokenize`
        return None
    try:
        tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
        return None
    place = _Places(text)
    spans: dict[str, list[Span]] = {name: [] for name in CLASSES}
    for name, span in [*_from_tree(tree, place), *_from_tokens(tokens, place)]:
        spans[name].append(span)
    inside = np.zeros(len(text) + 1, bool)
    for start, stop in spans["docstring"]:
        inside[start:stop] = True
    spans["string"] = [(start, stop) for start, stop in spans["string"] if not inside[start]]
    return spans


def labels(text: str, starts: np.ndarray) -> np.ndarray | None:
    """bool [len(starts), C]: which of CLASSES hold at each character; None where the text is no Python."""
    spans = class_spans(text)
    if spans is None:
        return None
    found = np.zeros((len(starts), len(CLASSES)), bool)
    for column, name in enumerate(CLASSES):
        inside = np.zeros(len(text) + 1, bool)
        for start, stop in spans[name]:
            inside[start:stop] = True
        found[:, column] = inside[starts]
    return found


class _Places:
    """Character offsets of (line, column): `tokenize` counts columns in characters, `ast` in UTF-8 bytes."""

    def __init__(self, text: str) -> None:
        self.text, self.is_ascii = text, text.isascii()
        self.lines = [line + "\n" for line in text.split("\n")]
        self.starts = [0, *accumulate(len(line) for line in self.lines)]

    def of_characters(self, line: int, column: int) -> int:
        return self.starts[min(line - 1, len(self.starts) - 1)] + column

    def of_bytes(self, line: int, column: int) -> int:
        if self.is_ascii:
            return self.starts[line - 1] + column
        before = self.lines[line - 1].encode("utf-8", "surrogatepass")[:column]
        return self.starts[line - 1] + len(before.decode("utf-8", "surrogatepass"))

    def of_node(self, node: ast.expr | ast.stmt | ast.arg) -> Span:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.of_bytes(node.lineno, node.col_offset), self.of_bytes(node.end_lineno, node.end_col_offset)


def _from_tree(tree: ast.AST, place: _Places) -> Iterator[tuple[str, Span]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield "docstring", place.of_node(first.value)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (("decorator", place.of_node(decorator)) for decorator in node.decorator_list)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield "annotation", place.of_node(node.returns)
        if isinstance(node, ast.arg):
            start, _ = place.of_node(node)
            yield "parameter", (start, start + len(node.arg))
            if node.annotation is not None:
                yield "annotation", place.of_node(node.annotation)
        if isinstance(node, ast.AnnAssign):
            yield "annotation", place.of_node(node.annotation)
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield "import", place.of_node(node)
        if isinstance(node, ast.Call):
            opened = _UP_TO_ARGUMENTS.match(place.text, place.of_node(node.func)[1])
            if opened is not None:  # inside an f-string, Python 3.11 gives no exact places
                yield "call_argument", (opened.end(), place.of_node(node)[1] - 1)


def _from_tokens(tokens: list[tokenize.TokenInfo], place: _Places) -> Iterator[tuple[str, Span]]:
    depth, before = 0, ""
    for token in tokens:
        span = place.of_characters(*token.start), place.of_characters(*token.end)
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        elif token.type == tokenize.COMMENT:
            yield "comment", span
        elif token.type == tokenize.NUMBER:
            yield "number", span
        elif token.type == tokenize.OP:
            yield "operator", span
        elif token.type == tokenize.STRING or token_types.tok_name[token.type].startswith("FSTRING"):
            yield "string", span
        elif token.type == tokenize.NAME:
            yield from ((name, span) for name in _of_name(token.string, before))
        if depth >= 2 and token.type not in (tokenize.INDENT, tokenize.DEDENT):
            yield "nested", span
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.string


def _of_name(name: str, before: str) -> Iterator[str]:
    """Classes of a NAME token, given the token before it."""
    if keyword.iskeyword(name):
        yield "keyword"
    elif before in ("def", "class"):
        yield "defined_name"
    elif before == ".":
        yield "attribute"
    if name == "self":
        yield "self"
