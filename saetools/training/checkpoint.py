"""Checkpoints: everything from which a run goes on bit for bit, in one committed directory per step.

checkpoints/<step>/dictionary/             weights in the native format, unfolded
                   optimizer.safetensors   Adam's moments
                   state.safetensors       the dictionary's training state; rows cut but not yet trained on
                   stream.safetensors      the shuffle ring
                   state.json              Facts
                   manifest.json           size and hash of each file
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from torch import Tensor

from saetools import atomic
from saetools.errors import FormatError
from saetools.formats.native import load_unfolded
from saetools.records import FrozenModel
from saetools.safeio import damage, load_safetensors, read_json, verify_directory
from saetools.training.schedule import Plan

_logger = logging.getLogger(__name__)
VERSION = 1
DICTIONARY, OPTIMIZER, STATE = "dictionary", "optimizer.safetensors", "state.safetensors"
STREAM, FACTS = "stream.safetensors", "state.json"
_STATE, _QUEUE = "state.", "queue."


class Facts(FrozenModel):
    """The part of a checkpoint that is not tensors."""

    version: int = Field(VERSION, description="of this layout")
    step: int = Field(description="batches consumed, skipped ones included")
    n_tokens: int = Field(description="rows consumed")
    n_skipped: int = Field(description="steps not applied")
    n_skipped_in_row: int = Field(description="of these, since the last one applied")
    adam_steps: int = Field(description="updates applied by the optimizer")
    metrics_bytes: int = Field(description="length of metrics.jsonl at this step")
    n_blocks: int = Field(description="blocks taken from the shuffled stream")
    stream: dict[str, Any] = Field(description="state of the shuffled stream besides its tensors")
    environment: dict[str, str | int] = Field(description="what bit-exactness depends on")
    plan: Plan = Field(description="resolved numbers of the run")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint. Tensors by name; saving reads them in place, copying none that is on the CPU."""

    facts: Facts
    weights: Mapping[str, Tensor]  # state_dict of the unfolded dictionary
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Tensor]  # the dictionary's training state
    queue: Mapping[str, Tensor]  # rows cut but not yet trained on
    stream: Mapping[str, Tensor]


def save_checkpoint(directory: Path, checkpoint: Checkpoint, save_weights: Callable[[Path], None], keep: int) -> Path:
    """Write checkpoints/<step>/ whole or not at all, then delete old ones but the newest `keep` valid ones.

    `save_weights` writes the dictionary's directory at the path it is given. Raises RunError where writing fails; all
    earlier checkpoints are then still there.
    """
    path = directory / f"{checkpoint.facts.step:010d}"
    with atomic.committed_directory(path, replace=True) as temporary:
        save_weights(temporary / DICTIONARY)
        atomic.write_tensors(temporary / OPTIMIZER, checkpoint.optimizer)
        state = _prefixed(_STATE, checkpoint.state) | _prefixed(_QUEUE, checkpoint.queue)
        atomic.write_tensors(temporary / STATE, state)
        atomic.write_tensors(temporary / STREAM, checkpoint.stream)
        atomic.write_text(temporary / FACTS, checkpoint.facts.model_dump_json(indent=1) + "\n")
    prune_checkpoints(directory, keep)
    return path


def load_newest(directory: Path) -> Checkpoint | None:
    """The newest valid checkpoint, None without any; a warning names each newer one that is damaged, and why.

    Raises FormatError where checkpoints are there but none is valid.
    """
    reasons = []
    for path in reversed(checkpoint_paths(directory)):
        try:
            checkpoint = read_checkpoint(path)
        except FormatError as error:
            reasons.append(str(error))
            _logger.warning("skipped the damaged checkpoint %s: %s", path, error)
            continue
        return checkpoint
    if reasons:
        raise FormatError(
            f"no checkpoint in {directory} is valid. Newest: {reasons[0]} Delete {directory} to begin the run again."
        )
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint, verified against its manifest before any of it is used. Raises FormatError."""
    verify_directory(path)
    try:
        facts = Facts.model_validate(read_json(path / FACTS))
    except ValidationError as error:
        raise FormatError(f"{path / 'state.json'}: {' '.join(str(error).split())[:300]}") from error
    if facts.version != VERSION:
        raise FormatError(f"{path} is a checkpoint of version {facts.version}; this version reads {VERSION}.")
    state = load_safetensors(path / STATE)
    return Checkpoint(
        facts=facts,
        weights=load_unfolded(path / DICTIONARY).dictionary.state_dict(),
        optimizer=load_safetensors(path / OPTIMIZER),
        state=_without(_STATE, state),
        queue=_without(_QUEUE, state),
        stream=load_safetensors(path / STREAM),
    )


def checkpoint_paths(directory: Path) -> list[Path]:
    """All committed checkpoints, valid or not, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.name.isdigit() and path.is_dir())


def prune_checkpoints(directory: Path, keep: int) -> None:
    """Delete checkpoints older than the newest `keep` valid ones; with fewer valid ones, nothing."""
    n_valid = 0
    for path in reversed(checkpoint_paths(directory)):
        if n_valid >= keep:
            atomic.remove_directory(path)
        elif damage(path) is None:
            n_valid += 1


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
