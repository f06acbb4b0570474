"""Training by another road gives the same bits; whatever ends a run badly leaves a state to go on from."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from saetools.activations.base import ActivationBatch
from saetools.activations.rows import RowsSource
from saetools.atomic import truncate
from saetools.errors import ConfigError, DataError, MismatchError, RunError
from saetools.formats.load import load
from saetools.formats.native import load_unfolded
from saetools.safeio import verify_directory
from saetools.training import trainer
from saetools.training.checkpoint import checkpoint_paths, read_checkpoint
from saetools.training.environment import cpu_name, dictionary_device, environment, resolve_device
from saetools.training.loop import train
from saetools.training.opening import fresh_trainer
from saetools.training.run_directory import read_calibration
from saetools.training.trainer import Trainer


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_what_is_promised(rows: Path, straight: Path) -> None:
    lines = records(straight)
    assert [line["step"] for line in lines] == [1, *range(3, 61, 3)]
    assert lines[-1]["loss/reconstruction"] < 0.6 * lines[0]["loss/reconstruction"]
    assert lines[-1]["n_tokens"] == 7200
    assert lines[0]["loss/reconstruction"] < 1, "b_dec begins in the middle, and the loss is in units of the variance"
    assert all(line["dead_fraction"] == line["n_dead"] / 48 for line in lines)
    assert any(line["loss/auxk"] for line in lines)
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss/reconstruction"] + line["loss/auxk"] / 32)
    assert [lines[i]["lr"] for i in (0, 1, -1)] == pytest.approx([0.01 / 3, 0.01, 0.01 / 12])
    assert [p.name for p in checkpoint_paths(straight / "checkpoints")] == ["0000000059", "0000000060"]
    assert read_checkpoint(checkpoint_paths(straight / "checkpoints")[0]).facts.n_tokens == 59 * 120
    verify_directory(straight / "dictionary")
    assert not (straight / "owner.json").exists()
    facts = json.loads((straight / "run.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__
    dictionary = load(straight)
    norms = dictionary.W_dec_FD.norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-6)
    x_ND = torch.from_numpy(np.load(rows))
    of_raw_rows = (x_ND - dictionary(x_ND)).square().sum(1).mean() / dictionary.total_variance
    assert of_raw_rows.item() == pytest.approx(lines[-1]["loss/reconstruction"], rel=0.2)


def test_two_runs_of_one_seed_are_equal_and_another_seed_is_not(
    program: ModuleType, rows: Path, train_tiny: Callable, straight: Path, tmp_path: Path, digests: Callable
) -> None:
    train_tiny(tmp_path / "a")
    assert digests(tmp_path / "a") == digests(straight)
    train_tiny(tmp_path / "b", **{"run.seed": 1})
    assert not set(digests(tmp_path / "b").values()) & set(digests(straight).values())
    configs = [program.tiny_config(rows, tmp_path / "c", **{"run.seed": seed}) for seed in (0, 1)]
    starts = [fresh_trainer(config, program.tiny_source(config)(None)).dictionary for config in configs]
    assert not starts[0].W_dec_FD.equal(starts[1].W_dec_FD), "not the order of the rows alone"


def test_checkpoint_cadence_and_logging_change_nothing(
    train_tiny: Callable, straight: Path, tmp_path: Path, digests: Callable
) -> None:
    train_tiny(tmp_path / "a", **{"training.checkpoint_every_tokens": 2500, "training.keep_checkpoints": 5})
    assert digests(tmp_path / "a") == digests(straight)
    assert len(checkpoint_paths(tmp_path / "a" / "checkpoints")) == 3


def test_several_on_one_stream_equal_each_alone(
    program: ModuleType, rows: Path, straight: Path, tmp_path: Path, train_tiny: Callable, digests: Callable
) -> None:
    other = {"dictionary.k": 2, "training.batch_rows": 300, "training.n_tokens": 5000}
    train_tiny(tmp_path / "alone", **other)
    configs = [
        program.tiny_config(rows, tmp_path / "first"),
        program.tiny_config(rows, tmp_path / "second", **other),
    ]
    results = train(configs, program.tiny_source(configs[0]))
    assert [r.n_steps for r in results] == [60, 17]
    assert digests(tmp_path / "first") == digests(straight)
    assert digests(tmp_path / "second") == digests(tmp_path / "alone")


def test_several_resumed_from_different_places_equal_each_alone(
    program: ModuleType,
    rows: Path,
    straight: Path,
    tmp_path: Path,
    train_tiny: Callable,
    digests: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rare = {"dictionary.k": 2, "training.checkpoint_every_tokens": 4000}
    train_tiny(tmp_path / "alone", **rare)
    configs = [program.tiny_config(rows, tmp_path / "first"), program.tiny_config(rows, tmp_path / "second", **rare)]
    with monkeypatch.context() as patch:
        fail_at_step(patch, 50)
        with pytest.raises(KeyError):
            train(configs, program.tiny_source(configs[0]))
    newest = [checkpoint_paths(tmp_path / name / "checkpoints")[-1].name for name in ("first", "second")]
    assert newest == ["0000000042", "0000000034"]
    train(configs, program.tiny_source(configs[0]))
    assert digests(tmp_path / "first") == digests(straight)
    assert digests(tmp_path / "second") == digests(tmp_path / "alone")


def fail_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    take = Trainer._step

    def failing(self: Trainer, batch: ActivationBatch) -> Any:
        if self.state.step == step:
            raise KeyError("planned")
        return take(self, batch)

    patch.setattr(Trainer, "_step", failing)


@pytest.mark.parametrize("step", [0, 3, 17, 59])
def test_resumed_after_an_exception_at_any_step(
    step: int,
    train_tiny: Callable,
    straight: Path,
    tmp_path: Path,
    digests: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        fail_at_step(patch, step)
        with pytest.raises(KeyError):
            train_tiny(tmp_path / "run")
    assert not (tmp_path / "run" / "dictionary").exists()
    result = train_tiny(tmp_path / "run")
    assert (result.n_steps, result.n_tokens, result.n_skipped) == (60, 7200, 0)
    assert digests(tmp_path / "run") == digests(straight)


def test_a_finished_run_is_left_as_it_is(train_tiny: Callable, tmp_path: Path, digests: Callable) -> None:
    train_tiny(tmp_path / "run")
    before, made = digests(tmp_path / "run"), (tmp_path / "run" / "dictionary").stat().st_ino
    train_tiny(tmp_path / "run")
    assert digests(tmp_path / "run") == before
    assert (tmp_path / "run" / "dictionary").stat().st_ino == made


def test_a_damaged_final_dictionary_is_written_again(
    train_tiny: Callable, tmp_path: Path, digests: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    train_tiny(tmp_path / "run")
    before, weights = digests(tmp_path / "run"), tmp_path / "run" / "dictionary" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        train_tiny(tmp_path / "run")
    assert "damaged and is written again" in caplog.text and str(weights) in caplog.text
    assert digests(tmp_path / "run") == before


def test_a_damaged_newest_checkpoint_is_skipped_aloud(
    train_tiny: Callable, straight: Path, tmp_path: Path, digests: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    train_tiny(tmp_path / "run")
    newest = checkpoint_paths(tmp_path / "run" / "checkpoints")[-1]
    path = newest / "stream.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        train_tiny(tmp_path / "run")
    assert str(newest) in caplog.text
    assert "stream.safetensors" in caplog.text
    assert digests(tmp_path / "run") == digests(straight)


# --- what may and may not change on resume ------------------------------------------------------------------


def test_a_constant_run_can_be_made_longer(
    train_tiny: Callable, tmp_path: Path, digests: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    constant = {"dictionary.kind": "mutual_choice", "training.schedule": "constant"}
    of_the_shorter = {"warmup_steps": 1, "dead_after_tokens": 186}
    train_tiny(tmp_path / "straight", **constant, **{f"training.{name}": n for name, n in of_the_shorter.items()})
    train_tiny(tmp_path / "longer", **constant, **{"training.n_tokens": 3720})
    train_tiny(tmp_path / "longer", **constant)
    assert "1 steps of warm-up, dead after 186 tokens" in caplog.text
    assert "n_tokens: 7200" in (tmp_path / "longer" / "config.yaml").read_text()
    assert digests(tmp_path / "longer") == digests(tmp_path / "straight")
    for path in checkpoint_paths(tmp_path / "longer" / "checkpoints"):
        assert read_checkpoint(path).weights["threshold"] > 0, "what is learnt beside the weights is in them"
    assert load(tmp_path / "longer").threshold > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.n_tokens": 10_000}, "training.n_tokens is 10000.*linear_decay"),
        ({"training.n_tokens": 5_000}, "can only be made longer"),
        ({"dictionary.k": 3}, r"another dictionary\.k "),
        ({"training.lr": 0.02, "run.seed": 3}, r"another training\.lr, run\.seed "),
    ],
)
def test_refused_changes(train_tiny: Callable, tmp_path: Path, changes: dict, message: str) -> None:
    short = {"training.n_tokens": 7680, "training.batch_rows": 512}
    train_tiny(tmp_path / "run", **short)
    with pytest.raises(RunError, match=message):
        train_tiny(tmp_path / "run", **{**short, **changes})


def test_other_data_is_refused(train_tiny: Callable, tmp_path: Path, rows: Path) -> None:
    changed = tmp_path / "rows.npy"
    np.save(changed, np.load(rows))
    train_tiny(tmp_path / "run", rows=changed, **{"training.n_tokens": 1000})
    np.save(changed, np.load(rows) * 1.5)
    with pytest.raises(RunError, match="on other data"):
        train_tiny(tmp_path / "run", rows=changed, **{"training.n_tokens": 1000})


def test_another_calibration_is_refused(
    program: ModuleType, train_tiny: Callable, rows: Path, straight: Path, tmp_path: Path
) -> None:
    config = program.tiny_config(rows, straight)
    other = read_calibration(straight).model_copy(update={"scale": 1.0})
    with pytest.raises(RunError, match="on other data"):
        train([config], lambda calibration: RowsSource(rows, calibration=other))


def test_other_threads_need_permission(train_tiny: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun = {"training.n_tokens": 1000, "training.schedule": "constant"}
    train_tiny(tmp_path / "run", **begun)
    longer = begun | {"training.n_tokens": 2000, "run.threads": 2}
    with pytest.raises(RunError, match=r"threads was 1, is 2.*--allow-inexact"):
        train_tiny(tmp_path / "run", **longer)
    with caplog.at_level(logging.WARNING):
        train_tiny(tmp_path / "run", allow_inexact=True, **longer)
    assert "threads was 1, is 2" in caplog.text


def test_a_finished_run_needs_no_permission(train_tiny: Callable, tmp_path: Path, digests: Callable) -> None:
    """Nothing is left to compute: after an update of a package the same command still ends well."""
    train_tiny(tmp_path / "run", **{"training.n_tokens": 1000})
    before = digests(tmp_path / "run")
    train_tiny(tmp_path / "run", **{"training.n_tokens": 1000, "run.threads": 2})
    assert digests(tmp_path / "run") == before


def test_apple_gpus_are_asked_for_by_name_and_take_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_device("mps") == torch.device("mps") and dictionary_device(torch.device("mps")).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dictionary_device(resolve_device("auto")) == torch.device("cuda")


def test_another_processor_is_another_environment(tmp_path: Path) -> None:
    models = [("AMD EPYC", 25, 17), ("Intel(R) Xeon(R) Processor", 6, 143), ("Intel(R) Xeon(R) Processor", 6, 85)]
    named = set()
    for model, family, number in models:
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor\t: 0\nmodel name\t: {model}\ncpu family\t: {family}\nmodel\t\t: {number}\n\n" * 2)
        named.add(cpu_name(info))
    assert len(named) == 3 and any(name.startswith("AMD EPYC (family 25, model 17), ") for name in named)
    (tmp_path / "arm").write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    assert cpu_name(tmp_path / "arm") == cpu_name(tmp_path / "none")
    cpu, cuda = (environment("plain", torch.device(name)) for name in ("cpu", "meta"))
    assert cpu["cpu"] == cpu_name() and "cpu" not in cuda and "numba" in cpu


def test_the_step_of_auto_resumes_exactly_and_not_as_plain(
    train_tiny: Callable, tmp_path: Path, digests: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = {"training.impl": "auto"}
    train_tiny(tmp_path / "straight", **auto)
    with monkeypatch.context() as patch:
        fail_at_step(patch, 31)
        with pytest.raises(KeyError):
            train_tiny(tmp_path / "run", **auto)
    checkpoint = read_checkpoint(checkpoint_paths(tmp_path / "run" / "checkpoints")[-1])
    if checkpoint.facts.environment["provider"] != "plain":
        with pytest.raises(RunError, match=r"provider was .*, is plain"):
            train_tiny(tmp_path / "run", **{"training.impl": "plain"})
    train_tiny(tmp_path / "run", **auto)
    assert digests(tmp_path / "run") == digests(tmp_path / "straight")


def test_a_dictionary_without_checkpoints_is_not_trained_over(train_tiny: Callable, tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", **{"training.n_tokens": 1000})
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "gone")
    with pytest.raises(RunError, match="no checkpoint to go on from"):
        train_tiny(tmp_path / "run", **{"training.n_tokens": 1000})


def test_metrics_cut_short_by_others_are_noticed(train_tiny: Callable, tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", **{"training.n_tokens": 1000})
    truncate(tmp_path / "run" / "metrics.jsonl", 10)
    with pytest.raises(RunError, match=r"metrics\.jsonl has 10 bytes but"):
        train_tiny(tmp_path / "run", **{"training.n_tokens": 1000})


def test_what_lies_there_before_the_first_checkpoint_binds_nothing(
    train_tiny: Callable, straight: Path, tmp_path: Path, digests: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at_step(patch, 2)
        with pytest.raises(KeyError):
            train_tiny(tmp_path / "run", **{"dictionary.k": 3, "run.seed": 5})
    calibration = tmp_path / "run" / "calibration.json"
    calibration.write_text(calibration.read_text().replace('"n_rows": 1024', '"n_rows": 3'))
    train_tiny(tmp_path / "run")
    assert digests(tmp_path / "run") == digests(straight)


def test_a_disk_too_small_for_the_checkpoints_is_told_before_the_start(
    train_tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000))
    with pytest.raises(RunError, match=r"3 checkpoints in .* take about \d\d\d,\d+ bytes, .*; 200,000 are free"):
        train_tiny(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- configs ------------------------------------------------------------------------------------------------


def test_configs_that_cannot_share_a_stream(program: ModuleType, rows: Path, tmp_path: Path) -> None:
    configs = [
        program.tiny_config(rows, tmp_path / "a"),
        program.tiny_config(rows, tmp_path / "b", **{"run.seed": 4, "activations.ring_rows": 2048}),
    ]
    with pytest.raises(ConfigError, match=r"activations\.ring_rows, run\.seed"):
        train(configs, program.tiny_source(configs[0]))
    with pytest.raises(ConfigError, match=r"same run\.dir"):
        train(configs[:1] * 2, program.tiny_source(configs[0]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.batch_rows": 2000}, "ring_rows is 1536"),
        ({"dictionary.k": 100}, "k = 100 is more than n_features = 48"),
    ],
)
def test_bad_configs_leave_no_trace(train_tiny: Callable, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_tiny(tmp_path / "run", **changes)
    assert not list(tmp_path.iterdir())


def test_a_longer_run_says_what_acts_by_its_length(
    train_tiny: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fixed = {"training.warmup_steps": 1, "training.dead_after_tokens": 100, "training.schedule": "constant"}
    for kind, share in (("variational", 0.1), ("variational", 0.0)):
        kept = fixed | {"dictionary.kind": kind, "dictionary.warmup_fraction": share}
        for n_tokens in (256, 512):
            caplog.clear()
            train_tiny(tmp_path / f"{kind}-{share}", **kept, **{"training.n_tokens": n_tokens})
        said = "dictionary.warmup_fraction act by the length of the run" in caplog.text
        assert said == (share > 0)


def test_init_from_starts_where_the_other_stands(
    program: ModuleType, train_tiny: Callable, straight: Path, tmp_path: Path, rows: Path
) -> None:
    start = {"training.init_from": str(straight), "training.n_tokens": 2560, "training.warmup_steps": 10}
    config = program.tiny_config(rows, tmp_path / "run", **start)
    old = program.tiny_source(config)(None).calibration
    other_units = old.model_copy(
        update={
            "scale": 3 * old.scale,
            "total_variance": 18 * old.total_variance,
            "b_dec_start": tuple(3 * value for value in old.b_dec_start),
        }
    )
    train([config], lambda calibration: RowsSource(rows, calibration=calibration or other_units))
    first, last = records(tmp_path / "run")[0], records(straight)[-1]
    assert first["loss/reconstruction"] == pytest.approx(last["loss/reconstruction"] * 9 / 18, rel=0.2)
    with pytest.raises(
        MismatchError, match=r"do not fit .*: its n_features is 48, and dictionary\.n_features is 50\. A run"
    ):
        train_tiny(tmp_path / "other", **start, **{"dictionary.n_features": 50})
    assert not (tmp_path / "other").exists()


def test_init_from_goes_on_with_other_settings(
    train_tiny: Callable, straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = {"training.init_from": str(straight), "training.n_tokens": 2560}
    train_tiny(tmp_path / "run", **start, **{"dictionary.k": 3})
    assert "other settings: its k is 4, and dictionary.k is 3" in caplog.text
    dictionary, before = load(tmp_path / "run"), load(straight)
    assert dictionary.config.k == 3
    cosines = (dictionary.directions() * before.directions()).sum(1)
    assert float(cosines.median()) > 0.9


def test_init_from_knows_a_kind_by_each_of_its_names(train_tiny: Callable, tmp_path: Path) -> None:
    short = {"training.n_tokens": 256}
    train_tiny(tmp_path / "first", **short, **{"dictionary.kind": "batch_topk"})
    start = {**short, "training.init_from": str(tmp_path / "first")}
    train_tiny(tmp_path / "second", **start, **{"dictionary.kind": "mutual_choice"})
    with pytest.raises(
        MismatchError, match=r"do not fit .*: its kind is mutual_choice, and dictionary\.kind is topk\."
    ):
        train_tiny(tmp_path / "third", **start, **{"dictionary.kind": "topk"})


def test_init_from_measures_gradients_by_the_rows_of_its_own_run(
    train_tiny: Callable, tmp_path: Path, rows: Path
) -> None:
    """Beta has no unit only as long as gradients are divided by the RMS of those that come."""
    x_ND = np.load(rows)
    grad_ND = 1e-3 * np.random.default_rng(0).normal(size=x_ND.shape).astype(np.float32)
    save_file({"x": x_ND, "grad": grad_ND}, tmp_path / "rows.safetensors")
    kind = {"dictionary.kind": "gradient", "training.n_tokens": 2560, "training.warmup_steps": 1}
    train_tiny(tmp_path / "without", **kind)
    train_tiny(
        tmp_path / "with",
        rows=tmp_path / "rows.safetensors",
        **kind,
        **{"training.init_from": str(tmp_path / "without")},
    )
    assert float(load(tmp_path / "with").gradient_rms) == pytest.approx(1e-3, rel=0.02)


# --- what is not finite -------------------------------------------------------------------------------------


class Poisoned:
    """A step whose target is infinite at some steps."""

    def __init__(self, step: Any, at: set[int]) -> None:
        self.step, self.at, self.provider = step, at, step.provider

    def __call__(self, x_ND: Any, target_ND: Any, fields: Any, state: Any, progress: Any, lr: float) -> Any:
        target_ND = target_ND * torch.inf if progress.step in self.at else target_ND
        return self.step(x_ND, target_ND, fields, state, progress, lr)


def poison(patch: pytest.MonkeyPatch, steps: set[int]) -> None:
    make = trainer.make_step
    patch.setattr(trainer, "make_step", lambda *args: Poisoned(make(*args), steps))


def test_two_bad_steps_are_skipped_and_counted(
    train_tiny: Callable, tmp_path: Path, digests: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {4, 5, 23, 24})
    assert train_tiny(tmp_path / "run").n_skipped == 4
    lines = {line["step"]: line for line in records(tmp_path / "run")}
    assert lines[6]["loss"] in {"nan", "inf"}
    assert lines[9]["n_skipped"] == 2
    assert all(torch.isfinite(p).all() for p in load(tmp_path / "run").parameters())
    with monkeypatch.context() as patch:
        fail_at_step(patch, 30)  # its newest checkpoint is that of step 25
        with pytest.raises(KeyError):
            train_tiny(tmp_path / "killed")
    shutil.copytree(tmp_path / "killed", tmp_path / "unlucky")
    assert train_tiny(tmp_path / "killed").n_skipped == 4
    assert digests(tmp_path / "killed") == digests(tmp_path / "run")
    timed = [json.loads(line) for line in (tmp_path / "killed" / "timing.jsonl").read_text().splitlines()]
    n_timed = sum(line["seconds"] * line["tokens_per_second"] for line in timed)
    assert n_timed == pytest.approx((30 + 60 - 25) * 120, rel=0.01), "steps that are done again are counted again"
    poison(monkeypatch, {25})
    with pytest.raises(RunError, match="3 steps in a row, the last being step 26"):
        train_tiny(tmp_path / "unlucky")


def test_three_bad_steps_in_a_row_stop_at_the_last_good_state(
    train_tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at_step(patch, 21)
        with pytest.raises(KeyError):
            train_tiny(tmp_path / "good", **{"training.checkpoint_every_tokens": 128})
    with monkeypatch.context() as patch:
        poison(patch, {18, 19, 20})
        with pytest.raises(RunError, match="3 steps in a row, the last being step 21"):
            train_tiny(tmp_path / "run", **{"training.checkpoint_every_tokens": 7000})
    assert [p.name for p in checkpoint_paths(tmp_path / "run" / "checkpoints")] == ["0000000021"]
    stopped = load_unfolded(tmp_path / "run" / "checkpoints" / "0000000021" / "dictionary").dictionary.state_dict()
    assert all(torch.isfinite(value).all() for value in stopped.values())
    poison(monkeypatch, {21})  # one more, which does not stop the resumed run: it counts anew
    assert train_tiny(tmp_path / "run", **{"training.checkpoint_every_tokens": 7000}).n_skipped == 4


def test_a_row_that_is_not_finite_is_named(program: ModuleType, rows: Path, tmp_path: Path) -> None:
    config = program.tiny_config(rows, tmp_path / "run")
    source = program.tiny_source(config)(None)
    clean = source.batches

    def dirty(start: int = 0) -> Any:
        for number, batch in clean(start):
            x_ND = batch.x_ND.clone()
            x_ND[77, 3] = torch.nan
            yield number, ActivationBatch(x_ND, batch.where_N2, batch.fields)

    source.batches = dirty
    with pytest.raises(DataError, match=r"document 'rows\.npy', position 77, at the point rows"):
        train([config], lambda calibration: source)
