"""Write every golden checkpoint for each library that computes it, for `make_golden.py --check` to read back.

    python scripts/check_exports.py DIRECTORY
    peers/bin/python scripts/make_golden.py --check DIRECTORY

Each export stands in `<library>--<case>` with `expected.safetensors`: the golden rows, and our code and reconstruction.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import saetools
from saetools.dictionaries.base import Dictionary
from saetools.errors import MismatchError

GOLDEN = Path(__file__).parents[1] / "tests" / "formats" / "golden"
LIBRARIES = {"saelens": "SAELens", "dl": "dictionary_learning", "sparsify": "sparsify"}


def dictionaries() -> dict[str, Dictionary]:
    """The golden checkpoints as we load them, by name."""
    cases = json.loads((GOLDEN / "golden.json").read_text())["cases"]
    return {
        name: saetools.load(GOLDEN / name / case.get("source", ""), allow_pt=True, k=case.get("k"))
        for name, case in cases.items()
    }


def main() -> None:
    """Write the exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    n_written = 0
    for name, dictionary in dictionaries().items():
        x_ND = load_file(GOLDEN / name / "expected.safetensors")["x"]
        for short, library in LIBRARIES.items():
            path = out / f"{short}--{name}"
            try:
                saetools.save_as(dictionary, path, library)
            except MismatchError as error:
                print(f"{short} {name}: {error}"[:110])
                continue
            n_written += 1
            with torch.no_grad():
                code = dictionary.encode(x_ND).to_dense()
                save_file({"x": x_ND, "code": code, "recon": dictionary(x_ND)}, path / "expected.safetensors")
    print(f"{n_written} exports in {out}")


if __name__ == "__main__":
    main()
