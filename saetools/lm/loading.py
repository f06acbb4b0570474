"""Reading a causal language model from a directory, or by its hub name, into a bridge of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from saetools.atomic import hash_file
from saetools.config import HostConfig
from saetools.errors import DataError, FormatError
from saetools.text.base import sha256_of
from saetools.text.remote import find_commit

WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


def download(name: str, revision: str | None) -> tuple[Path, str]:
    """(directory, commit) of a hub model, downloaded unless it is in the cache. Raises DataError where it cannot be."""
    from huggingface_hub import snapshot_download

    found = find_commit(name, "model", revision)
    try:
        directory = snapshot_download(
            name,
            revision=found.commit,
            allow_patterns=WANTED_FILES,
            ignore_patterns="*/*",
            local_files_only=not found.online,
        )
    except OSError as error:
        raise DataError(f"The model {name!r} could not be downloaded: {error}") from error
    return Path(directory), found.commit


def content_hash(directory: Path) -> str:
    """What the weights are: sha256 over names and xxh3-128 of config.json and all safetensors files."""
    files = [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
    return sha256_of([[file.name, hash_file(file)] for file in files])[:32]


def check_files(directory: Path) -> None:
    """Raise FormatError where a directory lacks a file that every host has."""
    for needed in ("config.json", "*.safetensors"):
        if not any(directory.glob(needed)):
            raise FormatError(
                f"{directory} has no {needed}: a host is a Hugging Face directory with config.json, safetensors "
                "weights and tokenizer.json (pickled weights are not read)."
            )


def load_bridge(directory: Path, config: HostConfig, device: str) -> TransformerBridge:
    """A fresh, frozen bridge in evaluation mode, with eager attention.

    The directory has its files (`check_files`). Raises FormatError where they are not all weights of a bridged model.
    """
    dtype = getattr(torch, config.dtype)
    with _format_errors(directory), _without_progress_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(directory),
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = loaded
        _refuse_incomplete(directory, report)
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        model.requires_grad_(False)
        bridge = TransformerBridge.boot_transformers(
            str(directory), hf_model=model.to(device), tokenizer=tokenizer, device=device, dtype=dtype
        )
        if config.compatibility_mode:
            bridge.enable_compatibility_mode(disable_warnings=True)
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    return bridge.eval()


def _refuse_incomplete(directory: Path, report: dict) -> None:
    for fault in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(fault) or ())):
            raise FormatError(
                f"The weights in {directory} do not make the model that its config.json describes: "
                f"{len(names)} {fault.replace('_', ' ')}, such as {names[0]}."
            )


@contextmanager
def _format_errors(directory: Path) -> Iterator[None]:
    """Whatever transformers and transformer-lens raise about a directory becomes a FormatError that names it."""
    try:
        yield
    except FormatError:
        raise
    except Exception as error:  # a damaged directory makes them raise anything, safetensors' own class included
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise FormatError(f"{directory} could not be loaded as a causal language model. {cause}") from error


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    were_on = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            transformers.utils.logging.enable_progress_bar()
