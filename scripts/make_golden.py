"""Checkpoints written and run by the other libraries' own code, for the tests of `saetools.formats`.

    python -m venv peers
    peers/bin/pip install sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3
    peers/bin/pip install overcomplete==0.3.0
    peers/bin/python scripts/make_golden.py tests/formats/golden

Runs under the interpreter of that environment and imports nothing of saetools; the cases stand in `golden_*.py`. For
each it leaves a directory with the checkpoint, `expected.safetensors` (rows x [N, D], and the library's float32 code
[N, F] and recon [N, D]) and, in `golden.json`, the hash of every file and how the case is to be read. Layouts without
a public writer (Gemma Scope, Llama Scope, Qwen Scope) are written here as documented and run through SAELens' loaders.

    peers/bin/python scripts/make_golden.py --check DIRECTORY

reads what saetools wrote for SAELens, dictionary_learning and sparsify (`scripts/check_exports.py`) by those libraries,
and prints how far their codes and reconstructions are from ours.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_others  # noqa: F401  registers its cases, as the next does
import golden_saelens  # noqa: F401
import torch
from golden_cases import CASES, DTYPES, X_ND, versions
from golden_check import check
from safetensors.torch import save_file


def write_all(out: Path) -> None:
    index: dict[str, Any] = {"versions": versions(), "cases": {}}
    for name, function in sorted(CASES.items()):
        for label, dtype in DTYPES.items():
            torch.manual_seed(0)
            path = out / f"{name}-{label}"
            path.mkdir(parents=True, exist_ok=True)
            for file in sorted(path.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            result = function(path, dtype)
            if not result:
                path.rmdir()
                continue
            tensors = {key: result.pop(key).detach().float().contiguous() for key in ("code", "recon")}
            sound = 0 < (tensors["code"] != 0).float().mean() < 1 and tensors["recon"].abs().max() < 1e4
            assert sound, f"{path.name} is no test"
            save_file(tensors | {"x": X_ND}, path / "expected.safetensors")
            index["cases"][path.name] = result | {"files": dict(hashes(path))}
    (out / "golden.json").write_text(json.dumps(index, indent=1) + "\n")
    print(f"{len(index['cases'])} cases in {out}")


def hashes(path: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        yield file.relative_to(path).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    """Write the cases to the directory given, or with --check read exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--check", action="store_true", help="read the exports in it")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # SAELens writes a config's keys in the order of a set
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})
    (check if options.check else write_all)(options.directory)


if __name__ == "__main__":
    main()
