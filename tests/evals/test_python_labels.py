"""Token classes on a source whose every class is known."""

import ast
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest

from saetools.evals.python_labels import CLASSES, class_spans, labels

SOURCE = textwrap.dedent(
    '''\
    """Module docstring."""
    import os.path  # a comment

    @decorate(1)
    class Thing(Base):
        """Klass."""

        size: int = 3

        async def method(self, first: str, *rest) -> bool:
            """Döc."""
            if first.startswith("ünï" + str(12)):
                return self.size
            return f"{first}!"
    '''
)


def pieces(name, text=SOURCE):
    return [text[start:stop] for start, stop in class_spans(text)[name]]


def test_every_class():
    assert pieces("docstring") == ['"""Module docstring."""', '"""Klass."""', '"""Döc."""']
    assert pieces("comment") == ["# a comment"]
    assert pieces("import") == ["import os.path"]
    assert pieces("decorator") == ["decorate(1)"]
    assert pieces("defined_name") == ["Thing", "method"]
    assert pieces("parameter") == ["self", "first", "rest"]
    assert sorted(pieces("annotation")) == ["bool", "int", "str"]
    assert pieces("attribute") == ["path", "startswith", "size"]
    assert pieces("number") == ["1", "3", "12"]
    assert pieces("self") == ["self", "self"]
    assert set(pieces("keyword")) == {"import", "class", "async", "def", "if", "return"}
    assert '"ünï"' in pieces("string") and not any("Döc" in piece for piece in pieces("string"))
    assert sorted(pieces("call_argument")) == sorted(["1", '"ünï" + str(12)', "12"])
    assert "->" in pieces("operator")
    assert "return" in pieces("nested") and "Thing" not in pieces("nested") and "int" not in pieces("nested")


def test_labels_at_characters():
    found = labels(SOURCE, np.array([SOURCE.index("12"), SOURCE.index("Döc"), SOURCE.index("size: int")]))
    rows = [{name for name, holds in zip(CLASSES, row, strict=True) if holds} for row in found]
    assert rows == [{"number", "call_argument", "nested"}, {"docstring", "nested"}, set()]


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("(f)(x)", "x"),
        ("f (x)", "x"),
        ("(\n(f) # (no)\n)(x, y)", "x, y"),
        ("(f # (\n) \\\n (x, y=1)", "x, y=1"),
        ("f[0](x)", "x"),
        ("f()", ""),
        ("('ü')(x)", "x"),
    ],
)
def test_arguments_are_what_is_between_the_parentheses_of_a_call(text, argument):
    assert pieces("call_argument", text) == [argument]


@pytest.mark.parametrize(
    "text",
    [
        "def f(:\n",
        "x = '\n",
        "if 1:\nx\n",
        "\0",
        "  x\n y\n",
        "x = 1\ry = 2\n",
        pytest.param("not " * 7000 + "x", id="deep"),
    ],
)
def test_what_is_no_python(text):
    assert class_spans(text) is None and labels(text, np.array([0])) is None


@pytest.mark.parametrize("text", ["", "x", "x = 1", "\fx = 2\n", "x = '''a\r\nb'''\n"])
def test_short_and_odd_sources(text):
    assert labels(text, np.arange(len(text))).shape == (len(text), len(CLASSES))


@pytest.mark.parametrize("module", [json.decoder, ast, textwrap])
def test_real_sources(module):
    text = Path(module.__file__).read_text(encoding="utf-8")
    spans = class_spans(text)
    assert all(
        0 <= start < stop <= len(text) for name in CLASSES for start, stop in spans[name] if name != "call_argument"
    )
    assert all(text[start:stop].startswith("#") for start, stop in spans["comment"])
    assert {text[a:b] for a, b in spans["self"]} <= {"self"}
    assert all(text[a:b].isidentifier() for a, b in spans["parameter"] + spans["defined_name"] + spans["attribute"])
