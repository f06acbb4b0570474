"""One run: a trainer with its directory, metrics, checkpoints, progress bar and mirror."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from saetools import atomic
from saetools.activations.base import ActivationBatch, RowSource
from saetools.activations.shuffle import ShuffledRows, ring_bytes
from saetools.errors import DataError, RunError
from saetools.formats.native import save_dictionary
from saetools.safeio import damage
from saetools.training.checkpoint import Checkpoint, Facts, load_newest, save_checkpoint
from saetools.training.metrics import MetricsLog, TimingLog, metrics_record
from saetools.training.mirror import Mirror
from saetools.training.opening import fresh_trainer, resumed_trainer, trainer_environment
from saetools.training.run_directory import RunDirectory
from saetools.training.schedule import checkpoint_steps
from saetools.training.trainer import Done

_logger = logging.getLogger(__name__)
MAX_SKIPPED_IN_ROW = 3


@dataclass(frozen=True)
class TrainResult:
    """What a finished run is."""

    directory: Path  # the run's
    dictionary: Path  # the final dictionary's
    n_steps: int
    n_tokens: int  # rows trained on
    n_skipped: int  # steps not applied because they were not finite


class Run:
    """A run under way. Whoever makes and uses it holds the lock of its directory."""

    def __init__(self, config: Any, directory: RunDirectory, source: RowSource, allow_inexact: bool) -> None:
        self.config, self.directory, self.source = config, directory, source
        directory.clean()
        self.loaded: Checkpoint | None = load_newest(directory.checkpoints)
        if self.loaded is None:
            directory.check_unfinished()
            self.trainer = fresh_trainer(config, source)
            self._check_space()
            directory.begin(config, source.spec, source.fingerprint(), source.calibration)
        else:
            self.trainer = resumed_trainer(config, directory, source, self.loaded, allow_inexact)
        if directory.dictionary.exists() and not self.trainer.finished:
            atomic.remove_directory(directory.dictionary)  # of the shorter run that this one continues
        self.saved_step = self.trainer.state.step
        self.save_every = checkpoint_steps(config.training)
        self.metrics = MetricsLog(directory.metrics)
        self.metrics.cut_back(self.loaded.facts.metrics_bytes if self.loaded else 0)
        self.timing = TimingLog(directory.timing, self.trainer.n_tokens)
        self.facts = directory.read_facts()
        self.mirror = Mirror(config.logging, directory.mirror, self.facts["mirror_id"], config.model_dump(mode="json"))
        self.bar = self._progress_bar()
        self.stalled_at: int | None = None
        self.timing_due = False

    def forget_loaded(self) -> None:
        """Free the memory of the checkpoint that this run was resumed from."""
        self.loaded = None

    def advance(self, block: ActivationBatch) -> None:
        """Train on the next block of the stream and log the steps that are due. Stops early where `stalled`."""
        for done in self.trainer.consume(block):
            self._note(done)
            if self.stalled() and done.state is self.trainer.state:  # the last of those that are told of together
                return

    def stalled(self) -> bool:
        """Whether too many steps in a row were not finite."""
        return self.stalled_at is not None

    def give_up(self, stream: ShuffledRows) -> RunError:
        """Save the last good state of a stalled run; the error to raise."""
        self._settle()
        self.trainer.state = self.trainer.state.calmed()
        self.save(stream)
        return RunError(
            f"{self.directory.path}: loss or gradient was not finite in {MAX_SKIPPED_IN_ROW} steps in a row, the last "
            f"being step {self.stalled_at}. None of them was applied; the last good state is saved and "
            f"resumes with the rows after them. A lower training.lr may help."
        )

    def due(self) -> bool:
        """Whether a checkpoint is due: at the end of the run, and when a multiple of the interval has been passed."""
        step = self.trainer.n_begun  # saving waits for those under way
        passed = step // self.save_every > self.saved_step // self.save_every
        return step > self.saved_step and (passed or self.trainer.finished)

    def save(self, stream: ShuffledRows) -> None:
        """Write a checkpoint. `stream` stands just after the last block that this run took."""
        trainer = self.trainer
        self._settle()
        tensors, stream_state = stream.state()
        trainer.dictionary.absorb_(trainer.state.dictionary)
        facts = Facts(
            step=trainer.state.step,
            n_tokens=trainer.n_tokens,
            n_skipped=trainer.state.n_skipped,
            n_skipped_in_row=trainer.state.n_skipped_in_row,
            adam_steps=trainer.optimizer.n_steps,
            metrics_bytes=self.metrics.sync(),
            n_blocks=trainer.n_blocks,
            stream=stream_state,
            environment=trainer_environment(trainer),
            plan=trainer.plan,
        )
        checkpoint = Checkpoint(
            facts=facts,
            weights=trainer.dictionary.state_dict(),
            optimizer=trainer.optimizer.tensors(),
            state=trainer.state.dictionary.tensors(),
            queue=trainer.queue.state(),
            stream=tensors,
        )
        keep = self.config.training.keep_checkpoints
        save_checkpoint(self.directory.checkpoints, checkpoint, self._save_dictionary, keep)
        self.saved_step = facts.step

    def finish(self) -> TrainResult:
        """Write the final dictionary, whole or not at all."""
        trainer, final = self.trainer, self.directory.dictionary  # its last checkpoint is of the last step
        if final.exists() and (reason := damage(final)):
            _logger.warning("the final dictionary was damaged and is written again: %s", reason)
            atomic.remove_directory(final)
        if not final.exists():
            self._save_dictionary(final)
        return TrainResult(
            directory=self.directory.path,
            dictionary=final,
            n_steps=trainer.state.step,
            n_tokens=trainer.n_tokens,
            n_skipped=trainer.state.n_skipped,
        )

    def close(self) -> None:
        """End the progress bar and the mirror."""
        self.bar.close()
        self.mirror.close()

    def _check_space(self) -> None:
        """Raise RunError where the disk cannot hold the checkpoints kept and the one being written."""
        trainer, settings, source = self.trainer, self.config.activations, self.source
        n_fields = int(source.calibration.gradient_rms is not None)
        tensors = [*trainer.dictionary.state_dict().values(), *trainer.optimizer.tensors().values()]
        ring = ring_bytes(settings.ring_rows, source.spec.d_model, settings.dtype, n_fields)
        n_checkpoints = self.config.training.keep_checkpoints + 1
        needed = n_checkpoints * (ring + sum(tensor.nbytes for tensor in tensors))
        free = shutil.disk_usage(self.directory.path).free
        if needed > free:
            raise RunError(
                f"{n_checkpoints} checkpoints in {self.directory.path} take about {needed:,} bytes, of which the "
                f"shuffle ring is {n_checkpoints * ring:,}; {free:,} are free. Free some space, lower "
                f"activations.ring_rows, or set run.dir to another disk."
            )

    def _save_dictionary(self, path: Path) -> None:
        provenance = {
            "step": self.trainer.state.step,
            "n_tokens": self.trainer.n_tokens,
            "config": self.config.model_dump(mode="json"),
            **{key: self.facts[key] for key in ("versions", "git_commit", "data_fingerprint")},
        }
        calibration = self.source.calibration
        save_dictionary(
            self.trainer.dictionary, path, self.source.spec, calibration, provenance, scale=calibration.scale
        )

    def _settle(self) -> None:
        """Wait for the steps under way and note them."""
        for done in self.trainer.settle():
            self._note(done)

    def _note(self, done: Done) -> None:
        if not done.result.applied:
            self._check_rows(done)
        if self.stalled_at is None and done.state.n_skipped_in_row >= MAX_SKIPPED_IN_ROW:
            self.stalled_at = done.state.step
        self._log(done)

    def _log(self, done: Done) -> None:
        step, n_tokens = done.state.step, done.state.step * self.trainer.plan.batch_rows
        self.bar.update(self.trainer.plan.batch_rows)
        self._log_record(step, n_tokens, done)
        if self.timing_due and done.state is self.trainer.state:  # not between steps that are told of together
            self.timing.append(step, n_tokens)
            self.timing_due = False

    def _log_record(self, step: int, n_tokens: int, done: Done) -> None:
        if step != 1 and step % self.config.logging.every_steps:
            return
        n_features = self.trainer.dictionary.config.n_features
        record = metrics_record(step, n_tokens, done.lr, done.state.n_skipped, n_features, done.result)
        self.metrics.append(record)
        self.timing_due = True
        self.mirror.log(record)
        self.bar.set_postfix(
            loss=f"{record['loss']:.4f}", L0=f"{record['l0']:.1f}", dead=record["n_dead"], refresh=False
        )

    def _check_rows(self, done: Done) -> None:
        """Raise DataError naming the first row that is not finite, where that is why a step was not applied."""
        finite_N = torch.isfinite(done.batch.x_ND).all(dim=1)
        if bool(finite_N.all()):
            return
        document, position = done.batch.where_N2[int((~finite_N).nonzero()[0])].tolist()
        raise DataError(
            f"the activations of document {self.source.document_id(document)!r}, position {position}, at the point "
            f"{self.source.spec.point} are not finite. Run the host in float32, or leave that document out."
        )

    def _progress_bar(self) -> Any:
        plan = self.trainer.plan
        return tqdm(
            total=plan.n_steps * plan.batch_rows,
            initial=self.trainer.n_tokens,
            desc=self.directory.path.name,
            unit="tok",
            unit_scale=True,
            disable=None if self.config.logging.progress else True,  # None: no bar where stderr is no terminal
        )
