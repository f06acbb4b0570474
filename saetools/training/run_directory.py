"""The directory of one run: what it holds, who may write to it, and whether a config belongs to it.

config.yaml        resolved config; `saetools train` reads it back
run.json           versions, git commit, data fingerprint, point, identity of the wandb mirror
calibration.json   measured before step 0, reused ever after
metrics.jsonl      the record; timing.jsonl beside it has the wall clock
checkpoints/<step>/, dictionary/
lock, owner.json   who is training in it now
"""

import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from saetools import atomic
from saetools.arguments import to_yaml
from saetools.config import RunConfigBase
from saetools.errors import FormatError, RunError
from saetools.records import Calibration, PointSpec
from saetools.safeio import read_json
from saetools.training.checkpoint import checkpoint_paths
from saetools.training.environment import git_commit, versions

FREE_TO_CHANGE = frozenset(
    {
        "run.dir",
        "run.device",
        "run.threads",
        "activations.prefetch",
        "training.impl",
        "training.keep_checkpoints",
        "training.checkpoint_every_tokens",
    }
)
"""Keys that change no bit of a run, or whose change is caught by comparing environments."""

NAMES_OF_DATA = frozenset({"host.name", "activations.path", "activations.heldout_path"})
"""Keys that say where data lies: a fingerprint says what it is, wherever it was moved to."""

NEEDED_FACTS = frozenset({"versions", "git_commit", "data_fingerprint", "mirror_id"})
"""Of run.json, which a run goes on by."""

FREE_SECTIONS = ("evaluation.", "logging.")


class RunDirectory:
    """The files of one run by name."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.facts = self.path / "run.json"
        self.calibration = self.path / "calibration.json"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.dictionary = self.path / "dictionary"
        self.mirror = self.path / "mirror"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory alone, made where missing; RunError at once, naming the holder, where another has it.

        The operating system frees the lock when its process ends, however it ends.
        """
        made = not self.path.exists()
        atomic.make_directory(self.path)
        lock, owner = FileLock(self.path / "lock"), self.path / "owner.json"
        try:
            lock.acquire(timeout=0.2, poll_interval=0.05)
        except Timeout:
            raise RunError(
                f"{self.path} is in use by {_owner_text(owner)}. Wait until it ends, stop it, or set run.dir to "
                f"another directory."
            ) from None
        except OSError as error:
            raise RunError(f"{lock.lock_file} cannot be locked: {error.strerror or error}. Check its owner.") from error
        try:
            atomic.write_json(owner, {"pid": os.getpid(), "host": platform.node()})
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()
            if made:
                _remove_if_unused(self.path)

    def clean(self) -> None:
        """Remove what killed writers left. Only under the lock."""
        for directory in (self.path, self.checkpoints):
            if directory.exists():
                atomic.remove_temporaries(directory)

    def begin(self, config: RunConfigBase, spec: PointSpec, fingerprint: str, calibration: Calibration) -> None:
        """Write what identifies a new run."""
        atomic.write_json(
            self.facts,
            {
                "versions": versions(),
                "git_commit": git_commit(),
                "data_fingerprint": fingerprint,
                "spec": spec.model_dump(mode="json"),
                "mirror_id": secrets.token_hex(6),
            },
        )
        atomic.write_text(self.calibration, calibration.model_dump_json(indent=1) + "\n")
        self.write_config(config)

    def write_config(self, config: RunConfigBase) -> None:
        """Record the resolved config."""
        atomic.write_text(self.config, to_yaml(config))

    def has_begun(self) -> bool:
        """Whether there is a checkpoint. What was written before the first one binds no later run."""
        return bool(checkpoint_paths(self.checkpoints))

    def check_unfinished(self) -> None:
        """Raise RunError where a final dictionary lies here: without a checkpoint, a run would begin anew over it."""
        if self.dictionary.exists():
            raise RunError(
                f"{self.path} holds a final dictionary but no checkpoint to go on from. Set run.dir to another "
                f"directory, or delete {self.dictionary} to train anew."
            )

    def check_same(self, config: RunConfigBase, fingerprint: str, calibration: Calibration) -> None:
        """Raise RunError naming what differs where this is not a continuation of the run recorded here."""
        recorded_config, given = self._read_config(), config.model_dump(mode="json")
        with suppress(ValidationError):  # of another kind, or with keys of another version: compared as it stands
            recorded_config = type(config).model_validate(recorded_config).model_dump(mode="json")
        changed = [key for key in changed_keys(recorded_config, given) if not _is_free(key)]
        recorded = self.read_facts()["data_fingerprint"]
        same_data = recorded == fingerprint and read_calibration(self.path) == calibration
        moved = NAMES_OF_DATA | {"corpus.name"} if config.activations.source == "live" else NAMES_OF_DATA
        checked_elsewhere = {"training.n_tokens", *(moved if same_data else ())}
        changed = [key for key in changed if key not in checked_elsewhere]
        if changed:
            raise RunError(
                f"{self.path} holds a run with another {', '.join(changed)} (see its config.yaml). A run is resumed "
                f"with the config that it began with; set it back, or set run.dir to another directory."
            )
        if not same_data:
            raise RunError(
                f"{self.path} holds a run on other data (fingerprint {recorded}; now it is {fingerprint}). A run is "
                f"resumed on the same rows; restore them, or set run.dir to another directory."
            )

    def check_length(self, config: RunConfigBase, n_tokens: int) -> None:
        """Raise RunError where a run planned for n_tokens cannot go on to the config's n_tokens."""
        wanted, schedule = config.training.n_tokens, config.training.schedule
        if wanted < n_tokens:
            raise RunError(
                f"training.n_tokens is {wanted}, but the run in {self.path} was begun for {n_tokens}: a run under way "
                f"can only be made longer. Give at least {n_tokens}."
            )
        if wanted > n_tokens and schedule != "constant":
            raise RunError(
                f"training.n_tokens is {wanted}, but the run in {self.path} was begun for {n_tokens} with the schedule "
                f"{schedule}, whose learning rate at each step depends on the length of the run: the steps done would "
                f"have had other rates. Only runs with training.schedule constant can be made longer; to go on from "
                f"this dictionary as a new run, set training.init_from to {self.path} and run.dir to another directory."
            )

    def read_facts(self) -> dict[str, Any]:
        """The content of run.json."""
        with _needed(self.facts):
            facts = read_json(self.facts)
            if not isinstance(facts, dict) or not facts.keys() >= NEEDED_FACTS:
                raise FormatError(f"{self.facts} does not say {', '.join(sorted(NEEDED_FACTS))} of a run.")
            return facts

    def _read_config(self) -> dict[str, Any]:
        with _needed(self.config):
            try:
                values = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
                raise FormatError(f"{self.config} cannot be read: {' '.join(str(error).split())}.") from error
            if not isinstance(values, dict):
                raise FormatError(f"{self.config} holds no config.")
            return values


def read_calibration(run: Path | str) -> Calibration:
    """The calibration that a run was begun with, for building its source again."""
    path = RunDirectory(run).calibration
    with _needed(path):
        try:
            return Calibration.model_validate(read_json(path))
        except ValidationError as error:
            raise FormatError(f"{path} is not a calibration: {' '.join(str(error).split())[:200]}.") from error


@contextmanager
def _needed(path: Path) -> Iterator[None]:
    """Say what to do where a file that a begun run goes on by cannot be read."""
    try:
        yield
    except FormatError as error:
        raise FormatError(
            f"{error} The run in {path.parent} cannot go on without it: put it back as it was, or set run.dir to "
            "another directory."
        ) from error


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of the values that differ between two nested mappings, those of one alone included."""
    flat_old, flat_new = _flat(old), _flat(new)
    return [k for k in dict.fromkeys([*flat_old, *flat_new]) if flat_old.get(k, ...) != flat_new.get(k, ...)]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat


def _is_free(key: str) -> bool:
    return key in FREE_TO_CHANGE or key.startswith(FREE_SECTIONS)


def _remove_if_unused(path: Path) -> None:
    """Remove a run directory in which nothing but its lock was ever written: bad input leaves no trace."""
    if {entry.name for entry in path.iterdir()} <= {"lock"}:
        (path / "lock").unlink(missing_ok=True)
        path.rmdir()


def _owner_text(path: Path) -> str:
    try:
        owner = read_json(path)
        return f"process {owner['pid']} on {owner['host']}"
    except (FormatError, KeyError, TypeError):
        return "another process"
