"""The API reference: every public function and class says what it does, and the examples in docstrings are true."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "saetools"
INNER = ("kernels/", "dashboard/live/")
"""Compiled loops, their test cases, and layouts of the app: no part of what a user calls."""
MODULES = {
    path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.relative_to(PACKAGE).as_posix().startswith(INNER)
}
WITH_EXAMPLES = [name.removesuffix(".__init__") for name, path in MODULES.items() if ">>> " in path.read_text()]


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions and classes of a module that say nothing."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_documented(name: str) -> None:
    assert not undocumented(ast.parse(MODULES[name].read_text()))


def test_the_check_catches() -> None:
    assert undocumented(ast.parse('def a(): "said"\ndef b(): pass\ndef _c(): pass')) == ["b"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0 and not found.failed


def test_examples_are_found() -> None:
    assert {"saetools.formats.load", "saetools.dictionaries.code", "saetools.errors"} <= set(WITH_EXAMPLES)
