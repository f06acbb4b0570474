"""The API reference: every public function, class and method says what it does, and the examples are true."""

import ast
import doctest
import importlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

import saetools

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


def methods(node: ast.ClassDef) -> dict[str, bool]:
    """Public methods and properties of a class, and whether each has a docstring."""
    own = [part for part in node.body if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")]
    return {part.name: bool(ast.get_docstring(part)) for part in own}


def undocumented_methods(trees: Iterable[ast.Module]) -> list[str]:
    """Those of public classes that neither say anything nor are what a base class, or a protocol, documents."""
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base).split(".")[-1].split("[")[0] for base in node.bases] for node in classes}
    said: dict[str, set[str]] = defaultdict(set)
    for node in classes:
        said[node.name] |= {name for name, has in methods(node).items() if has}
    by_protocols = {name for cls, names in said.items() if "Protocol" in bases[cls] for name in names}

    def known(cls: str) -> set[str]:
        return said.get(cls, set()).union(*(known(base) for base in bases.get(cls, ()) if base != cls))

    return [
        f"{node.name}.{name}"
        for node in classes
        if not node.name.startswith("_")
        for name in methods(node)
        if name not in known(node.name) | by_protocols
    ]


def test_every_method_is_documented() -> None:
    assert not undocumented_methods(ast.parse(path.read_text()) for path in MODULES.values())


def test_the_front_page_names_what_is_public() -> None:
    assert saetools.__doc__ and all(f"`{module}.{name}`" in saetools.__doc__ for name, module in saetools._LAZY.items())


def test_the_check_of_methods_catches() -> None:
    source = """
class P(Protocol):
    def a(self): "said"
class B:
    def b(self): "said"
class C(B):
    def a(self): ...
    def b(self): ...
    def c(self): ...
    def _d(self): ...
"""
    assert undocumented_methods([ast.parse(source)]) == ["C.c"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0 and not found.failed


def test_examples_are_found() -> None:
    assert {"saetools.formats.load", "saetools.dictionaries.code", "saetools.errors"} <= set(WITH_EXAMPLES)
