"""Golden cases by SAELens: its own checkpoints, and the layouts that it reads and nobody writes in public."""

import json
from pathlib import Path
from typing import Any

import torch
from golden_cases import X_ND, D, F, K, case, in_general_position, made
from safetensors.torch import load_file, save_file


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
