"""Checkpoints written and run by the other libraries' own code, for the tests of `saetools.formats`.

    python -m venv peers
    peers/bin/pip install sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3
    peers/bin/pip install overcomplete==0.3.0
    peers/bin/python scripts/make_golden.py tests/formats/golden

Runs under the interpreter of that environment and imports nothing of saetools. For each case it leaves a directory
with the checkpoint, `expected.safetensors` (rows x [N, D], and the library's float32 code [N, F] and recon [N, D])
and, in `golden.json`, the hash of every file and how the case is to be read. Layouts without a public writer (Gemma
Scope, Llama Scope, Qwen Scope) are written here as documented and run through SAELens' loaders.

    peers/bin/python scripts/make_golden.py --check DIRECTORY

reads what saetools wrote for SAELens, dictionary_learning and sparsify (`scripts/check_exports.py`) by those libraries,
and prints how far their codes and reconstructions are from ours.
"""

import hashlib
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

D, F, N, K = 6, 11, 12, 3
X_ND = torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
CASES: dict[str, Callable[[Path, torch.dtype], dict[str, Any]]] = {}


def case(name: str) -> Callable[[Any], Any]:
    """Register a function that writes the checkpoint to a directory and returns code, recon and how to read it."""

    def register(function: Callable[[Path, torch.dtype], dict[str, Any]]) -> Callable[..., Any]:
        CASES[name] = function
        return function

    return register


def in_general_position(module: torch.nn.Module, dtype: torch.dtype, pursuit: bool = False) -> None:
    """Random weights with a decoder far from unit norm and biases far from zero, as representable in dtype."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if "threshold" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=draw) * 1.5)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * (0.1, 0.5, 1)[parameter.ndim])
            if name.startswith(("W_dec", "decoder.weight")):
                rows = parameter if parameter.shape[0] == F else parameter.T
                rows *= torch.linspace(0.3, 2, F)[:, None]
                if pursuit:  # far longer atoms would make it diverge
                    rows *= torch.linspace(0.7, 1.2, F)[:, None] / rows.norm(dim=1, keepdim=True)
            parameter.copy_(parameter.to(dtype).float())


def made(**settings: Any) -> dict[str, torch.Tensor]:
    """Random tensors by name and shape, for layouts that are written here."""
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(*shape, generator=draw) * 0.7 for name, shape in settings.items()}
    for name in ("W_dec", "w_dec", "decoder.weight"):
        if name in tensors:
            rows = tensors[name] if tensors[name].shape[0] == F else tensors[name].T
            rows *= torch.linspace(0.3, 2, F)[:, None]
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    return tensors


# --- SAELens -----------------------------------------------------------------------------------------------


def saelens_case(name: str, architecture: str, checkpoint: bool, **settings: Any) -> None:
    @case(name)
    def write(path: Path, dtype: torch.dtype) -> dict[str, Any]:
        from sae_lens import SAE, TrainingSAE
        from sae_lens.registry import get_sae_training_class

        _, config_class = get_sae_training_class(architecture)
        config = config_class(d_in=D, d_sae=F, **settings)
        config.metadata.model_name, config.metadata.hook_name = "gpt2", "blocks.3.hook_resid_post"
        sae = TrainingSAE.from_dict(config.to_dict())
        in_general_position(sae, dtype, architecture == "matching_pursuit")
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(1.25)
        sae.to(dtype)
        sae.cfg.dtype = str(dtype).removeprefix("torch.")
        (sae.save_model if checkpoint else sae.save_inference_model)(path)
        if checkpoint:  # its inference form folds norms, which bf16 would round
            sae.float()
        inference = path / "inference"
        sae.save_inference_model(inference)
        run = SAE.load_from_disk(inference, dtype="float32")
        for file in inference.iterdir():
            file.unlink()
        inference.rmdir()
        return {"code": run.encode(X_ND), "recon": run.decode(run.encode(X_ND))}


saelens_case("saelens-standard", "standard", False)
saelens_case("saelens-standard-uncentred", "standard", False, apply_b_dec_to_input=False)
saelens_case("saelens-gated", "gated", False)
saelens_case("saelens-jumprelu", "jumprelu", False)
saelens_case("saelens-topk", "topk", False, k=K, rescale_acts_by_decoder_norm=False)
saelens_case("saelens-topk-rescaled", "topk", False, k=K, rescale_acts_by_decoder_norm=True)
saelens_case("saelens-topk-uncentred", "topk", False, k=K, apply_b_dec_to_input=False)
saelens_case("saelens-abstopk", "abstopk", False, k=K, rescale_acts_by_decoder_norm=True)
saelens_case("saelens-batchtopk", "batchtopk", False, k=K)
saelens_case("saelens-batchtopk-checkpoint", "batchtopk", True, k=K)
saelens_case("saelens-matryoshka", "matryoshka_batchtopk", False, k=K, matryoshka_widths=[4, F])
saelens_case("saelens-matryoshka-checkpoint", "matryoshka_batchtopk", True, k=K, matryoshka_widths=[4, F])
saelens_case("saelens-matching-pursuit", "matching_pursuit", False, residual_threshold=0.5)
saelens_case(
    "saelens-matching-pursuit-again",
    *("matching_pursuit", False),
    residual_threshold=0.0,
    max_iterations=5,
    stop_on_duplicate_support=False,
)


@case("saelens-before-6")
def saelens_before_6(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The config generation before version 6, read by SAELens' own conversion."""
    from sae_lens import SAE

    config = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "model_name": "gpt2-small"}
    config |= {"hook_name": "blocks.1.hook_mlp_out", "hook_layer": 1, "hook_head_index": None, "prepend_bos": True}
    config |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": False}
    config |= {"finetuning_scaling_factor": False, "context_size": 128, "normalize_activations": "none"}
    tensors = made(W_enc=(D, F), W_dec=(F, D), b_enc=(F,), b_dec=(D,))
    (path / "cfg.json").write_text(json.dumps(config))
    save_file({name: t.to(dtype) for name, t in tensors.items()}, path / "sae_weights.safetensors")
    run = SAE.load_from_disk(path, dtype="float32")
    return {"code": run.encode(X_ND), "recon": run.decode(run.encode(X_ND))}


# --- layouts that SAELens reads and nobody writes in public --------------------------------------------------


def by_saelens(loader: str, path: Path, repo: str, folder: str, overrides: dict[str, Any]) -> Any:
    """The SAE that one of SAELens' loaders of published checkpoints makes of the local directory."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def local(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        inside = f"{subfolder}/{filename}" if subfolder else filename
        return str(path / inside.removeprefix(folder + "/"))

    loaders.hf_hub_download = local
    loaders.get_safetensors_tensor_shapes = lambda repo_id, filename: {
        name: list(t.shape) for name, t in load_file(local(repo_id, filename)).items()
    }
    overrides = {"dtype": "float32"} | overrides
    config, state, _ = getattr(loaders, loader)(repo, folder, "cpu", False, overrides)
    config = loaders.handle_config_defaulting(config)
    sae = SAE.from_dict(config | {"normalize_activations": "none"})
    state = {name: tensor.float() for name, tensor in state.items()}
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    return sae


@case("gemma-scope")
def gemma_scope(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    import numpy as np

    if dtype != torch.float32:
        return {}  # numpy has no bfloat16
    tensors = made(W_enc=(D, F), W_dec=(F, D), b_enc=(F,), b_dec=(D,), threshold=(F,))
    np.savez(path / "params.npz", **{name: t.numpy() for name, t in tensors.items()})
    folder = "layer_5/width_16k/average_l0_50"
    repo = "google/gemma-scope-2b-pt-res"
    run = by_saelens("gemma_2_sae_huggingface_loader", path, repo, folder, {"d_in": D, "d_sae": F})
    return {"code": run.encode(X_ND), "recon": run.decode(run.encode(X_ND))}


@case("gemma-scope-2")
def gemma_scope_2(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": False}
    config |= {"hf_hook_point_in": "model.layers.7.output"}
    (path / "config.json").write_text(json.dumps(config))
    tensors = made(w_enc=(D, F), w_dec=(F, D), b_enc=(F,), b_dec=(D,), threshold=(F,))
    save_file({name: t.to(dtype) for name, t in tensors.items()}, path / "params.safetensors")
    folder = "resid_post/layer_7_width_16k_l0_medium"
    run = by_saelens("gemma_3_sae_huggingface_loader", path, "google/gemma-scope-2-1b-pt", folder, {})
    return {"code": run.encode(X_ND), "recon": run.decode(run.encode(X_ND))}


@case("llama-scope")
def llama_scope(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    norm = 7.5
    config = {"d_model": D, "d_sae": F, "expansion_factor": 2, "act_fn": "jumprelu", "jump_relu_threshold": 0.6}
    config |= {"hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post"}
    config |= {"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm}}
    config |= {"sparsity_include_decoder_norm": False, "apply_decoder_bias_to_pre_encoder": False}
    config |= {"use_decoder_bias": True, "use_glu_encoder": False, "top_k": 50}
    (path / "hyperparams.json").write_text(json.dumps(config))
    (path / "checkpoints").mkdir()
    shapes = {"encoder.weight": (F, D), "decoder.weight": (D, F), "encoder.bias": (F,), "decoder.bias": (D,)}
    tensors = made(**shapes)
    save_file(
        {name: t.to(dtype).contiguous() for name, t in tensors.items()}, path / "checkpoints" / "final.safetensors"
    )
    name = "Llama3_1-8B-Base-L15R-8x"
    run = by_saelens("llama_scope_sae_huggingface_loader", path, "fnlp/Llama3_1-8B-Base-LXR-8x", name, {})
    scale = D**0.5 / norm
    run.fold_activation_norm_scaling_factor(scale)
    return {"code": run.encode(X_ND), "recon": run.decode(run.encode(X_ND)), "code_scale": scale}


@case("qwen-scope")
def qwen_scope(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    tensors = made(W_enc=(F, D), W_dec=(D, F), b_enc=(F,), b_dec=(D,))
    torch.save({name: t.to(dtype) for name, t in tensors.items()}, path / "layer4.sae.pt")
    repo, size = f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}", {"d_in": D, "d_sae": F}
    run = by_saelens("qwen_scope_sae_huggingface_loader", path, repo, "layer4.sae.pt", size)
    return {"code": run.encode(X_ND), "recon": run.decode(run.encode(X_ND)), "source": "layer4.sae.pt", "k": K}


# --- dictionary_learning -------------------------------------------------------------------------------------


def dictionary_learning_case(name: str, module: str, trainer: str, **settings: Any) -> None:
    @case(name)
    def write(path: Path, dtype: torch.dtype) -> dict[str, Any]:
        made_by = getattr(__import__(f"dictionary_learning.trainers.{module}", fromlist=[trainer]), trainer)
        usual = {"steps": 30000, "activation_dim": D, "dict_size": F, "layer": 2, "lm_name": "gpt2", "device": "cpu"}
        takes = inspect.signature(made_by).parameters
        named = {"submodule_name": "transformer.h.2"} if "submodule_name" in takes else {}
        trained = made_by(**usual, **named, **settings)
        ae, config = trained.ae, dict(trained.config)
        in_general_position(ae, dtype)
        if "threshold" in dict(ae.named_buffers()) and config["dict_class"] != "AutoEncoderTopK":
            ae.threshold.fill_(1.25)
        return saved_by_dictionary_learning(path, ae, config, dtype)


def saved_by_dictionary_learning(path: Path, ae: Any, config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    plain = {name: v.item() if isinstance(v, torch.Tensor) else v for name, v in config.items()}
    (path / "config.json").write_text(json.dumps({"trainer": plain, "buffer": {"io": "out", "ctx_len": 128}}))
    state = {n: t.to(dtype) if t.is_floating_point() and t.ndim else t for n, t in ae.state_dict().items()}
    torch.save(state, path / "ae.pt")
    options = {"normalize_decoder": False} if type(ae).__name__ == "AutoEncoder" else {}
    run = type(ae).from_pretrained(path / "ae.pt", **options)
    with torch.no_grad():
        return {"code": run.encode(X_ND), "recon": run.decode(run.encode(X_ND))}


dictionary_learning_case("dl-standard", "standard", "StandardTrainer")
dictionary_learning_case("dl-april", "standard", "StandardTrainerAprilUpdate")
dictionary_learning_case("dl-p-anneal", "p_anneal", "PAnnealTrainer")
dictionary_learning_case("dl-gated", "gdm", "GatedSAETrainer")
dictionary_learning_case("dl-gated-anneal", "gated_anneal", "GatedAnnealTrainer")
dictionary_learning_case("dl-jumprelu", "jumprelu", "JumpReluTrainer")
dictionary_learning_case("dl-topk", "top_k", "TopKTrainer", k=K)
dictionary_learning_case("dl-batch-topk", "batch_top_k", "BatchTopKTrainer", k=K)
dictionary_learning_case(
    "dl-matryoshka", "matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", k=K, group_fractions=[0.4, 0.6]
)


@case("dl-new")
def dictionary_learning_new(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """AutoEncoderNew has no trainer of its own in this version; the config is that of the class alone."""
    from dictionary_learning.dictionary import AutoEncoderNew

    ae = AutoEncoderNew(D, F)
    in_general_position(ae, dtype)
    return saved_by_dictionary_learning(path, ae, {"dict_class": "AutoEncoderNew", "lm_name": "gpt2"}, dtype)


# --- sparsify ------------------------------------------------------------------------------------------------


@case("sparsify")
def sparsify(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(D, SparseCoderConfig(num_latents=F, k=K))
    in_general_position(coder, dtype)
    coder.to(dtype).save_to_disk(path)
    run = SparseCoder.load_from_disk(path).float()
    with torch.no_grad():
        out = run.encode(X_ND)
        code = torch.zeros(N, F).scatter(1, out.top_indices, out.top_acts)
        return {"code": code, "recon": run.decode(out.top_acts, out.top_indices)}


# --- overcomplete --------------------------------------------------------------------------------------------


def overcomplete_case(name: str, class_name: str, module: str, whole: bool, **settings: Any) -> None:
    @case(name)
    def write(path: Path, dtype: torch.dtype) -> dict[str, Any]:
        if dtype != torch.float32:
            return {}  # its codes and atoms are float32 throughout
        tied, options = settings.get("tied"), {n: v for n, v in settings.items() if n not in ("tied", "read")}
        sae = getattr(overcomplete(module), class_name)(D, F, **options)
        in_general_position(sae, dtype)
        if tied:
            sae = sae.tied(bias=True)
            sae.encoder.bias.data.fill_(0.2)
        sae.train()
        sae(X_ND)  # normalises the atoms in place, as each step of training does
        sae.eval()
        torch.save(sae if whole else sae.state_dict(), path / "sae.pt")
        with torch.no_grad():
            code = sae.encode(X_ND)[1]
            return {"code": code, "recon": sae.decode(code), "source": "sae.pt", **settings.get("read", {})}


def overcomplete(module: str) -> Any:
    """A module of the library, without its package's vision models, which need torchvision."""
    if "overcomplete" not in sys.modules:
        package = types.ModuleType("overcomplete")
        package.__path__ = [str(metadata.distribution("overcomplete").locate_file("overcomplete"))]
        sys.modules["overcomplete"] = package
        inner = types.ModuleType("overcomplete.sae")
        inner.__path__ = [package.__path__[0] + "/sae"]
        sys.modules["overcomplete.sae"] = inner
        inner.SAE = __import__("overcomplete.sae.base", fromlist=["SAE"]).SAE  # type: ignore[attr-defined]
    return __import__(f"overcomplete.sae.{module}", fromlist=["x"])


MULTIPLIED = {"dictionary_params": {"use_multiplier": True}}
overcomplete_case("overcomplete-topk", "TopKSAE", "topk_sae", True, top_k=K, **MULTIPLIED)
overcomplete_case("overcomplete-topk-tied", "TopKSAE", "topk_sae", True, top_k=K, tied=True)
overcomplete_case("overcomplete-topk-state", "TopKSAE", "topk_sae", False, top_k=K, read={"k": K})
overcomplete_case("overcomplete-batch-topk", "BatchTopKSAE", "batchtopk_sae", True, top_k=40)
overcomplete_case("overcomplete-jump", "JumpSAE", "jump_sae", True)
overcomplete_case("overcomplete-jump-state", "JumpSAE", "jump_sae", False)
overcomplete_case("overcomplete-pursuit", "MpSAE", "mp_sae", True, k=K, **MULTIPLIED)


# --- writing and checking ------------------------------------------------------------------------------------


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


def versions() -> dict[str, str]:
    names = ("sae-lens", "dictionary-learning", "eai-sparsify", "overcomplete", "torch", "safetensors")
    return {name: metadata.version(name) for name in names}


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


def main() -> None:
    """Write the cases to the directory given, or with --check read exports."""
    if sys.argv[1] == "--check":
        check(Path(sys.argv[2]))
    else:
        write_all(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
