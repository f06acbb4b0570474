"""How a run begins: a fresh trainer, one that starts from a trained dictionary, or one resumed from a checkpoint."""

import logging
from typing import Any

import torch

from saetools.activations.base import RowSource
from saetools.dictionaries.base import Dictionary, dictionary_class, make_dictionary
from saetools.errors import MismatchError, RunError
from saetools.formats.load import load
from saetools.training.checkpoint import Checkpoint, Facts
from saetools.training.construction import make_trainer
from saetools.training.environment import dictionary_device, environment, resolve_device
from saetools.training.run_directory import RunDirectory
from saetools.training.schedule import Plan, extended, make_plan
from saetools.training.state import TrainState
from saetools.training.trainer import Trainer

_logger = logging.getLogger(__name__)


def fresh_trainer(config: Any, source: RowSource) -> Trainer:
    """A trainer at step 0."""
    dictionary = _new_dictionary(config, source) if config.training.init_from is None else _started(config, source)
    plan = make_plan(config.training, dictionary.config.n_features)
    return make_trainer(
        _on_device(dictionary, config), plan, source.calibration, config.training.impl, config.training.compute
    )


def resumed_trainer(
    config: Any, directory: RunDirectory, source: RowSource, checkpoint: Checkpoint, allow_inexact: bool
) -> Trainer:
    """The trainer as it was at the checkpoint, perhaps with more steps to go.

    Raises RunError where config, data or length do not continue that run, and where what it computes with differs,
    unless `allow_inexact` or nothing is left to compute.
    """
    facts = checkpoint.facts
    directory.check_same(config, source.fingerprint(), source.calibration)
    directory.check_length(config, facts.plan.n_tokens)
    plan = extended(facts.plan, config.training.n_tokens)
    dictionary = _on_device(_blank_dictionary(config, source), config)
    trainer = make_trainer(dictionary, plan, source.calibration, config.training.impl, config.training.compute)
    if facts.step < plan.n_steps:
        _check_environment(facts.environment, trainer_environment(trainer), directory, allow_inexact)
    own = trainer.state.dictionary
    state = own.with_tensors({name: tensor.to(dictionary.device) for name, tensor in checkpoint.state.items()})
    dictionary.load_state_dict(dict(checkpoint.weights))
    trainer.optimizer.load_(checkpoint.optimizer, facts.adam_steps)
    trainer.state = TrainState(state, facts.step, facts.n_skipped, facts.n_skipped_in_row)
    trainer.queue.restore(checkpoint.queue)
    trainer.n_blocks = facts.n_blocks
    directory.write_config(config)
    _logger.info("resumed %s at step %d of %d", directory.path, facts.step, plan.n_steps)
    if plan.n_steps != facts.plan.n_steps:
        _warn_of_first_length(config, directory, facts, plan)
    return trainer


def _warn_of_first_length(config: Any, directory: RunDirectory, facts: Facts, plan: Plan) -> None:
    """Say what a run that was made longer does not do as one of that length from the start would."""
    scheduled = [f"dictionary.{name}" for name in config.dictionary.scheduled_by if getattr(config.dictionary, name)]
    if scheduled:
        _logger.warning(
            "%s: %s act by the length of the run, which was %d steps for the %d steps done and is %d for the others. A "
            "run of %d tokens from the start is another.",
            *(directory.path, ", ".join(scheduled), facts.plan.n_steps, facts.step, plan.n_steps, plan.n_tokens),
        )
    if None in (config.training.warmup_steps, config.training.dead_after_tokens):
        _logger.warning(
            "%s keeps what followed from its first length: %d steps of warm-up, dead after %d tokens. A run of %d "
            "tokens from the start equals it only where training.warmup_steps and training.dead_after_tokens say so.",
            *(directory.path, plan.warmup_steps, plan.dead_after_tokens, plan.n_tokens),
        )


def trainer_environment(trainer: Trainer) -> dict[str, str | int]:
    """What the bits of this trainer's steps depend on."""
    return environment(trainer.take_step.provider, trainer.dictionary.device)


def _on_device(dictionary: Dictionary, config: Any) -> Dictionary:
    return dictionary.to(dictionary_device(resolve_device(config.run.device))).train()


def _blank_dictionary(config: Any, source: RowSource) -> Dictionary:
    """One whose weights and buffers are still to be set."""
    return make_dictionary(config.dictionary, source.spec.d_model, config.run.seed)


def _new_dictionary(config: Any, source: RowSource) -> Dictionary:
    dictionary = _blank_dictionary(config, source)
    dictionary.calibrate_(source.calibration)
    return dictionary


def _started(config: Any, source: RowSource) -> Dictionary:
    """The weights of `training.init_from`, their units changed to rows scaled by this run's calibration."""
    dictionary = started_dictionary(config, source.spec.d_model)
    dictionary.fold_scale_(1 / source.calibration.scale)
    dictionary.take_constants_(source.calibration)
    return dictionary


def started_dictionary(config: Any, d_model: int) -> Dictionary:
    """The weights of `training.init_from` in their own units.

    Its settings are this run's: a dictionary can go on with another k or penalty. MismatchError where its weights do
    not fit.
    """
    path = config.training.init_from
    trained = load(path, dtype=torch.float32)
    dictionary = make_dictionary(config.dictionary, d_model, config.run.seed)
    if trained.d_model != dictionary.d_model:
        raise MismatchError(
            f"training.init_from {path} is a dictionary of width {trained.d_model}; the rows of this run have width "
            f"{dictionary.d_model}. Choose a dictionary of the same point."
        )
    own, asked = (_settings(d.config) for d in (trained, dictionary))
    keys = ["kind"] if own["kind"] != asked["kind"] else [key for key in asked if own[key] != asked[key]]
    differing = "; ".join(f"its {key} is {own[key]}, and dictionary.{key} is {asked[key]}" for key in keys)
    if own["kind"] != asked["kind"] or _shapes(trained) != _shapes(dictionary):
        raise MismatchError(
            f"training.init_from {path} has weights that do not fit the dictionary of this run: {differing}. A run "
            f"starts from one of the same kind and sizes; other settings may differ."
        )
    if differing:
        _logger.warning("training.init_from %s was trained with other settings: %s", path, differing)
    dictionary.load_state_dict(trained.state_dict())
    return dictionary


def _shapes(dictionary: Dictionary) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in dictionary.state_dict().items()}


def _settings(config: Dictionary.Config) -> dict[str, Any]:
    """Its values, an alias of a kind under the kind's own name."""
    return {**dict(config), "kind": dictionary_class(config.kind).kind}


def _check_environment(
    before: dict[str, str | int], now: dict[str, str | int], directory: RunDirectory, allow_inexact: bool
) -> None:
    differing = "; ".join(f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key])
    if not differing:
        return
    if not allow_inexact:
        raise RunError(
            f"the run in {directory.path} was computed otherwise ({differing}), so that going on would not give the "
            f"bits of an uninterrupted run. Restore what differs, or allow it with --allow-inexact."
        )
    _logger.warning(
        "%s is resumed inexactly (%s): its bits are those of no uninterrupted run.", directory.path, differing
    )
