"""SAEBench's core evaluation on a dictionary of ours for the embedded model, offline.

    python -m venv bench && bench/bin/pip install sae-bench==0.6.0 torch==2.13.0
    bench/bin/pip uninstall torchvision    # where its build is not torch's, it breaks the import of transformers
    PYTHONPATH=. bench/bin/python scripts/check_saebench.py RUN --out results

Runs under the interpreter of that environment, which has what loading a dictionary needs. The model is read from the
package by transformer-lens' own HookedTransformer, the text is the held-out part of the standard library.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

from sae_bench.evals.core.main import multiple_evals
from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

import saetools
from saetools.evals.saebench import SAEBenchAdapter
from saetools.text.stdlib import StdlibCorpus

HOST = Path(saetools.__file__).parent / "assets" / "pycode"


def main() -> None:
    """Evaluate and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a run or dictionary for the embedded model")
    parser.add_argument("--out", type=Path, required=True, help="directory for SAEBench's results")
    parser.add_argument("--batches", type=int, default=16, help="of 8 windows each")
    options = parser.parse_args()
    dictionary = saetools.load(options.source)
    if dictionary.spec is None or dictionary.spec.host != "pycode":
        parser.error(f"{options.source} is no dictionary of the embedded model")
    OFFICIAL_MODEL_NAMES.append(str(HOST))  # it reads a local directory, but asks for the name first
    layer = int(dictionary.spec.point.split(".")[1])
    sae = SAEBenchAdapter(dictionary, layer, str(HOST))
    with tempfile.TemporaryDirectory() as text:
        with (Path(text) / "train.jsonl").open("w") as file:
            for document in StdlibCorpus().documents("heldout"):
                file.write(json.dumps({"text": document.text}) + "\n")
        multiple_evals(
            [("saetools", sae)],
            n_eval_reconstruction_batches=options.batches,
            n_eval_sparsity_variance_batches=options.batches,
            dataset=text,
            context_size=dictionary.spec.context_tokens or 256,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            output_folder=str(options.out),
            device="cpu",
            force_rerun=True,
        )
    result = json.loads(next(options.out.glob("*_eval_results.json")).read_text())
    for group, figures in result["eval_result_metrics"].items():
        for name, value in figures.items():
            print(f"{group:32} {name:32} {value}")


if __name__ == "__main__":
    main()
