"""Golden cases by dictionary_learning, sparsify and overcomplete."""

import inspect
import json
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from golden_cases import X_ND, D, F, K, N, case, in_general_position


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
