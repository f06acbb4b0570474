"""Rooms, fences and promises of the house, read from the source by ast: nothing is imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "saetools"
ROOT = PACKAGE.parent
LEAVES = {"errors", "config", "records", "types", "rng", "atomic", "safeio", "arguments"}
MAY_IMPORT = {
    "kernels": set(),
    "functional": {"kernels"},
    "dictionaries": {"functional", "kernels"},
    "lm": {"text"},
    "text": set(),
    "activations": {"kernels", "text", "lm"},
    "formats": {"dictionaries"},
    "training": {"kernels", "functional", "dictionaries", "activations", "formats"},
    "features": {"functional", "dictionaries", "lm", "text", "activations"},
    "evals": {"functional", "dictionaries", "lm", "text", "activations", "features"},
    "dashboard": {"features"},
}
WITHOUT_TORCH = (
    "text/",
    "dashboard/",
    "features/store.py",
    "errors.py",
    "config.py",
    "records.py",
    "rng.py",
    "atomic.py",
)
FENCES = {
    "triton": ("kernels/",),
    "numba": ("kernels/",),
    "scipy": ("functional/",),
    "transformer_lens": ("lm/",),
    "transformers": ("lm/",),
    "datasets": ("text/",),
    "tokenizers": ("text/", "lm/"),
    "huggingface_hub": ("formats/", "lm/", "text/"),
    "wandb": ("training/mirror.py",),
    "sklearn": ("evals/",),
    "plotly": ("dashboard/",),
    "dash": ("dashboard/",),
    "umap": ("features/places.py",),
}
OF_DEFAULT_DTYPE = {f"torch.{name}" for name in ("zeros", "ones", "empty", "rand", "randn", "eye", "linspace")}
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}
MAX_LINES = 400


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of what a module imports, at any depth, `if TYPE_CHECKING` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(path: str, names: list[str]) -> list[str]:
    """What of `names` the file at `path` (relative to the package) may not import."""
    wrong = []
    room = path.split("/")[0] if "/" in path else None
    for name in names:
        top, *rest = name.split(".")
        if top == "saetools" and rest and room in MAY_IMPORT:
            target = rest[0]
            if target != room and target not in MAY_IMPORT[room] | LEAVES:
                wrong.append(name)
            if room == "dashboard" and target == "features" and rest[1:2] not in (["store"], ["records"]):
                wrong.append(name)
        if top == "torch" and path.startswith(WITHOUT_TORCH):
            wrong.append(name)
        if top in FENCES and not path.startswith(FENCES[top]) and path != "cli.py":
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_file(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "every module opens with what it is for"
    assert path.name not in FORBIDDEN_NAMES
    assert text.count("\n") <= MAX_LINES, "a file this long is two things"
    assert not wrong_imports(relative(path), list(imported(tree)))


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_no_forbidden_calls(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            if relative(path) != "formats/pt_sandbox.py":
                assert called not in {"torch.load", "pickle.load", "pickle.loads", "yaml.load"}, f"line {node.lineno}"
                told = path.name == "cases.py" or any(keyword.arg in ("dtype", None) for keyword in node.keywords)
                assert told or called not in OF_DEFAULT_DTYPE, f"line {node.lineno}: torch's default may be another"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("kernels/x/cpu.py", "saetools.dictionaries.base"),
        ("text/packing.py", "torch.nn"),
        ("evals/fvu.py", "scipy.stats"),
        ("dashboard/page.py", "saetools.features.collect"),
        ("activations/live.py", "saetools.functional.losses"),
        ("training/loop.py", "wandb"),
    ],
)
def test_the_check_catches(path: str, name: str) -> None:
    assert wrong_imports(path, [name]) == [name]


def test_every_room_is_in_the_table() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms == set(MAY_IMPORT)


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_importing_the_package_does_not_import_torch() -> None:
    run_python("import sys, saetools; assert 'torch' not in sys.modules and saetools.__version__")


# A package that is not installed is one that the search of the path does not find. To raise from a finder instead would
# also stop those who only ask whether it is there, as torch built for CUDA asks for triton.
BLOCKER = """
from importlib.machinery import PathFinder
def find_all_but(name, path=None, target=None, find_spec=PathFinder.find_spec):
    return None if name.split('.')[0] in {blocked!r} else find_spec(name, path, target)
PathFinder.find_spec = staticmethod(find_all_but)
"""


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        (
            "saetools.training.step saetools.training.optim saetools.functional.losses saetools.kernels.plan",
            "transformer_lens transformers datasets wandb plotly pydantic jsonargparse numba triton scipy sklearn yaml",
        ),
        (
            "saetools.dictionaries.topk saetools.training.step saetools.training.optim",
            "transformer_lens transformers datasets wandb plotly jsonargparse numba triton scipy sklearn yaml",
        ),
        ("saetools.features.store", "torch transformer_lens transformers datasets wandb numba"),
    ],
    ids=["step-without-pydantic", "dictionary", "store-without-torch"],
)
def test_imports_with_little_installed(modules: str, blocked: str) -> None:
    code = BLOCKER.format(blocked=set(blocked.split()))
    run_python(code + "".join(f"import {module}\n" for module in modules.split()))
