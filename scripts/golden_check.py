"""Reading what saetools wrote for other libraries, by those libraries."""

import json
from pathlib import Path

import torch
from golden_cases import versions
from safetensors.torch import load_file


def check(directory: Path) -> None:
    """Read every export by its own library; print the largest differences, relative to the largest value."""
    print("versions:", ", ".join(f"{name} {version}" for name, version in versions().items()))
    worst = 0.0
    for path in sorted(p for p in directory.iterdir() if p.is_dir()):
        library, _, what = path.name.partition("--")
        expected = load_file(path / "expected.safetensors")
        code, recon = {"saelens": run_saelens, "dl": run_dl, "sparsify": run_sparsify}[library](path, expected["x"])
        errors = [
            float((a - b).abs().max() / b.abs().max())
            for a, b in ((code, expected["code"]), (recon, expected["recon"]))
        ]
        same = torch.equal(code != 0, expected["code"] != 0)
        worst = max(worst, *errors)
        print(f"{library:8} {what:42} code {errors[0]:.1e}  recon {errors[1]:.1e}  same features: {same}")
        assert same
    print(f"worst: {worst:.1e}")
    assert worst <= 2e-6


def run_saelens(path: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from sae_lens import SAE

    run = SAE.load_from_disk(path, dtype="float32")
    code = run.encode(x)
    return code.detach(), run.decode(code).detach()


def run_dl(path: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    name = json.loads((path / "config.json").read_text())["trainer"]["dict_class"]
    here = {c.__name__: c for c in (BatchTopKSAE, MatryoshkaBatchTopKSAE, AutoEncoderTopK)}
    run_class = here.get(name) or getattr(dictionary, name)
    options = {"normalize_decoder": False} if name == "AutoEncoder" else {}
    run = run_class.from_pretrained(path / "ae.pt", **options)
    with torch.no_grad():
        code = run.encode(x)
        return code, run.decode(code)


def run_sparsify(path: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from sparsify import SparseCoder

    run = SparseCoder.load_from_disk(path).float()
    with torch.no_grad():
        out = run.encode(x)
        code = torch.zeros(len(x), run.num_latents).scatter(1, out.top_indices, out.top_acts)
        return code, run.decode(out.top_acts, out.top_indices)
