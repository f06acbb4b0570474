"""Defects that other libraries' trainers had, as tests of ours. Named after the library and what went wrong there.

V4 (a signal loses everything) is in test_kills.py, V5 and V6 (lost and invented gradients) with the dictionaries.
"""

import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from saetools.activations.base import ActivationBatch
from saetools.config import run_config_class
from saetools.dictionaries.base import Progress
from saetools.dictionaries.topk import TopK
from saetools.pipeline import read_config, shipped_configs
from saetools.training import run
from saetools.training.checkpoint import Checkpoint, checkpoint_paths, read_checkpoint
from saetools.training.loop import check_configs, train
from saetools.training.optim import Adam
from saetools.training.step import make_step, trained_parameters
from saetools.training.trainer import Trainer

CUT = 31
"""Steps of the tiny run's 60 after which it is interrupted; its last checkpoint before stands at step 25."""
ALL = {"training.keep_checkpoints": 99}


def interrupted(patch: pytest.MonkeyPatch, begin: Callable[[], Any]) -> list[list[list[int]]]:
    """Run `begin` until it fails after CUT steps; the rows (where) of each batch of those steps."""
    seen: list[list[list[int]]] = []
    take = Trainer._step

    def step(self: Trainer, batch: ActivationBatch) -> Any:
        if self.state.step == CUT:
            raise KeyError("planned")
        seen.append(batch.where_N2.tolist())
        return take(self, batch)

    with patch.context() as inner:
        inner.setattr(Trainer, "_step", step)
        with pytest.raises(KeyError):
            begin()
    return seen


def followed(patch: pytest.MonkeyPatch, begin: Callable[[], Any]) -> list[tuple[int, list[list[int]], torch.Tensor]]:
    """Run `begin`; of each step its number, its rows, and the counters of tokens since each feature fired before it."""
    seen: list[tuple[int, list[list[int]], torch.Tensor]] = []
    take = Trainer._step

    def step(self: Trainer, batch: ActivationBatch) -> Any:
        counters_F = self.state.dictionary.tokens_since_fired_F.clone()
        seen.append((self.state.step, batch.where_N2.tolist(), counters_F))
        return take(self, batch)

    with patch.context() as inner:
        inner.setattr(Trainer, "_step", step)
        begin()
    return seen


def newest(directory: Path) -> Checkpoint:
    return read_checkpoint(checkpoint_paths(directory / "checkpoints")[-1])


def test_v1_stock_defaults_run(program: ModuleType, rows: Path, tmp_path: Path) -> None:
    """SAELens: with its own defaults the buffer holds fewer rows than a batch takes."""
    said = {
        "activations": {"source": "rows", "path": rows},
        "dictionary": {"kind": "topk", "n_features": 48, "k": 4},
        "training": {"n_tokens": 4096},
        "run": {"dir": tmp_path / "run"},
    }
    config = run_config_class(TopK.Config).model_validate(said)
    assert train([config], program.tiny_source(config))[0].n_steps == 2


@pytest.mark.parametrize("name", shipped_configs())
def test_v1_shipped_configs_have_room_for_their_batches(name: str) -> None:
    check_configs([read_config(name)])


def test_v2_the_seed_decides_the_run_whatever_was_drawn_before(
    train_tiny: Callable, straight: Path, tmp_path: Path, digests: Callable
) -> None:
    """SAELens: its seed is never used."""
    for number, kind in enumerate(("topk", "variational")):  # the second draws noise in every step
        settings = {"dictionary.kind": kind}
        runs = []
        for seed in (1, 2):
            random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
            runs.append(tmp_path / f"{number}-{seed}")
            train_tiny(runs[-1], **settings, **{"training.n_tokens": 2400})
        assert digests(runs[0]) == digests(runs[1])
        train_tiny(tmp_path / f"{number}-other", **settings, **{"training.n_tokens": 2400, "run.seed": 1})
        assert not set(digests(tmp_path / f"{number}-other").values()) & set(digests(runs[0]).values())


def test_crosslayer_coding_no_state_of_a_global_generator_is_needed(
    train_tiny: Callable, tmp_path: Path, digests: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints have the generators' states, but not the GPU's. Ours needs none: noise is drawn by step."""
    noisy = {"dictionary.kind": "variational"}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    train_tiny(tmp_path / "straight", **noisy)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    interrupted(monkeypatch, lambda: train_tiny(tmp_path / "run", **noisy))
    torch.manual_seed(99)
    train_tiny(tmp_path / "run", **noisy)
    assert digests(tmp_path / "run") == digests(tmp_path / "straight")


def test_v3_a_resumed_run_is_the_straight_one_and_counts_its_steps(
    train_tiny: Callable, tmp_path: Path, digests: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAELens: another result, a step too few, and a burst of checkpoints. From the middle, not from the last step."""
    train_tiny(tmp_path / "straight", **ALL)
    interrupted(monkeypatch, lambda: train_tiny(tmp_path / "run", **ALL))
    facts = newest(tmp_path / "run").facts
    assert 0 < facts.step < CUT < 60 and facts.n_tokens == 120 * facts.step and facts.adam_steps == facts.step
    train_tiny(tmp_path / "run", **ALL)
    assert digests(tmp_path / "run") == digests(tmp_path / "straight")
    names = [[p.name for p in checkpoint_paths(tmp_path / d / "checkpoints")] for d in ("run", "straight")]
    assert names[0] == names[1]


def test_bionemo_a_resumed_epoch_goes_on_where_it_was(
    train_tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its resumed epoch begins again at the first shard, and its checkpoints count a step less than they hold."""
    straight = followed(monkeypatch, lambda: train_tiny(tmp_path / "straight"))
    interrupted(monkeypatch, lambda: train_tiny(tmp_path / "run"))
    first = newest(tmp_path / "run").facts.step
    resumed = followed(monkeypatch, lambda: train_tiny(tmp_path / "run"))
    assert [(number, rows) for number, rows, _ in resumed] == [(number, rows) for number, rows, _ in straight[first:]]


def test_llamascopium_dead_counters_are_resumed(
    train_tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sets them to zero; so does overcomplete, in every epoch."""
    straight = followed(monkeypatch, lambda: train_tiny(tmp_path / "straight"))
    interrupted(monkeypatch, lambda: train_tiny(tmp_path / "run"))
    resumed = followed(monkeypatch, lambda: train_tiny(tmp_path / "run"))
    first, _, counters_F = resumed[0]
    assert first > 0 and counters_F.max() > 0 and torch.equal(counters_F, straight[first][2])


def test_overcomplete_dead_counters_pass_the_end_of_an_epoch(
    train_tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tracker is made anew in every epoch. 4,500 rows are one here; one feature can never fire."""
    calibrate_ = TopK.calibrate_

    def with_a_dead_feature(self: TopK, calibration: Any) -> None:
        calibrate_(self, calibration)
        with torch.no_grad():
            self.b_enc_F[5] = -1e6

    monkeypatch.setattr(TopK, "calibrate_", with_a_dead_feature)
    seen = followed(monkeypatch, lambda: train_tiny(tmp_path / "run", **{"dictionary.aux_weight": 0.0}))
    assert [int(counters_F[5]) for _, _, counters_F in seen] == [120 * step for step in range(60)]


def test_llamascopium_checkpoints_come_as_often_as_asked_and_hold_all(train_tiny: Callable, tmp_path: Path) -> None:
    """Its interval in tokens is compared with steps, so that it mostly never ends; and what it saves are weights."""
    train_tiny(tmp_path / "run", **ALL, **{"training.checkpoint_every_tokens": 2400})
    steps = [int(path.name) for path in checkpoint_paths(tmp_path / "run" / "checkpoints")]
    assert len(steps) == 3 and all(0 <= step - asked < 1024 / 120 + 1 for step, asked in zip(steps, (20, 40, 60)))
    for path in checkpoint_paths(tmp_path / "run" / "checkpoints"):
        checkpoint = read_checkpoint(path)
        for part in (checkpoint.weights, checkpoint.optimizer, checkpoint.state, checkpoint.stream):
            assert part and any(tensor.any() for tensor in part.values())


def test_sparsify_a_run_is_resumed_from_its_own_directory(
    train_tiny: Callable, straight: Path, tmp_path: Path, digests: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its --resume does not look where the run was saved."""
    interrupted(monkeypatch, lambda: train_tiny(tmp_path / "here" / "run"))
    interrupted(monkeypatch, lambda: train_tiny(tmp_path / "other" / "run", **{"dictionary.k": 2}))
    seen = followed(monkeypatch, lambda: train_tiny(tmp_path / "here" / "run"))
    assert seen[0][0] > 0 and digests(tmp_path / "here" / "run") == digests(straight)


def test_dictionary_learning_what_is_saved_can_be_loaded_to_go_on(
    train_tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backups have no loader. Every file of a checkpoint of ours is read when a run goes on."""
    interrupted(monkeypatch, lambda: train_tiny(tmp_path / "run"))
    seen = followed(monkeypatch, lambda: train_tiny(tmp_path / "run"))
    assert seen[0][0] == 25
    assert run.load_newest(tmp_path / "run" / "checkpoints").facts.step == 60


@pytest.mark.parametrize("impl", ["plain", "fused"])
def test_crosscode_auxk_enters_the_loss(impl: str) -> None:
    """It computes the term and returns the reconstruction's alone."""
    dictionary = TopK(TopK.configure(n_features=64, k=1, aux_weight=0.5), 8, 0)
    x_ND = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    state = dictionary.initial_state()
    state.tokens_since_fired_F[:6] = 60
    optimizer = Adam(trained_parameters(dictionary))
    step = make_step(dictionary, optimizer, 1e9, impl, "fp32")  # type: ignore[arg-type]
    result = step(x_ND, x_ND, {}, state, Progress(0, 10, 1000, 50), 1e-3)
    assert result.losses["auxk"] > 0
    torch.testing.assert_close(result.loss, result.losses["reconstruction"] + 0.5 * result.losses["auxk"])
    fired_F = result.state.tokens_since_fired_F == 0
    assert (~fired_F[:6]).any(), "some of them stay dead"
    assert optimizer.first["W_enc_FD"][:6][~fired_F[:6]].abs().sum(1).gt(0).any(), "and are moved by AuxK alone"
