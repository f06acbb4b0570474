"""Steps that run ahead of the host give what plain steps give, one by one or read together; runs of them too.

The kernels are stood in for by plain ones (`stand_in.py`), but for one test by triton's interpreter. On a GPU
`scripts/gpu_suite.py` compares fifty steps of the captured step itself.
"""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: it exists for Linux on x86-64 alone")

from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State
from saetools.dictionaries.feature_choice import FeatureChoice
from saetools.dictionaries.gradient import Gradient
from saetools.dictionaries.matryoshka import Matryoshka
from saetools.dictionaries.mutual_choice import MutualChoice
from saetools.dictionaries.topk import TopK
from saetools.errors import RunError
from saetools.kernels.topk_step import triton as topk_step
from saetools.training import captured
from saetools.training.captured import CapturedStep, why_not_captured
from saetools.training.checkpoint import load_newest
from saetools.training.fused import FusedStep
from saetools.training.optim import Adam
from saetools.training.result import StepResult
from saetools.training.step import PlainStep, Step, make_step, trained_parameters
from tests.training.stand_in import StandIn

N, D, F, K = 32, 12, 40, 3
PROGRESS = Progress(step=0, n_steps=100, n_tokens=3200, dead_after_tokens=3 * N)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the captured step run on the CPU, by plain kernels."""
    monkeypatch.setattr(captured, "runs_on", lambda device: True)
    monkeypatch.setattr(captured, "LEAST_ROOM", 4)
    monkeypatch.setattr(topk_step, "DeviceStep", StandIn)


def topk(kind: type[Dictionary] = TopK) -> Dictionary:
    made = kind(kind.configure(n_features=F, k=K, k_aux=5), D, 0)
    made.total_variance.fill_(float(D))
    with torch.no_grad():
        made.b_enc_F[:6] -= 5  # dead after three batches
        made.b_enc_F[6:11] -= torch.arange(5) / 2  # some of these later
    return made


def rows(number: int, bad: bool = False) -> Tensor:
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(number)) + 0.3
    x[:1] *= torch.inf if bad else 1  # the others have values that could be learnt from
    return x * (1.5 if number < 4 else 0.4)


def plain_steps(
    n: int, bad: int = -1, kind: type[Dictionary] = TopK
) -> tuple[Dictionary, Adam, list[tuple[float, ...]], State]:
    dictionary = topk(kind)
    optimizer = Adam(trained_parameters(dictionary))
    step, state, told = PlainStep(dictionary, optimizer, 0.2), dictionary.initial_state(), []
    for number in range(n):
        x = rows(number, number == bad)
        result = step(x, x, {}, state, PROGRESS, 1e-2)
        state = result.state
        told.append((float(result.loss), float(result.l0), int(result.n_dead), float(result.grad_norm)))
    return dictionary, optimizer, told, state


def captured_steps(
    n: int, together: int | None, bad: int = -1, kind: type[Dictionary] = TopK
) -> tuple[Dictionary, CapturedStep, list, State]:
    """So many are read together; None: two readings of four are under way, and the first is asked for after each."""
    dictionary = topk(kind)
    step = CapturedStep(dictionary, Adam(trained_parameters(dictionary)), 0.2, "fp32")
    step.n_ahead = 4 if together is None else step.n_ahead
    state, told = dictionary.initial_state(), []
    for number in range(n):
        step.begin(rows(number, number == bad), state, PROGRESS, 1e-2)
        results: list[StepResult] = []
        if number == n - 1 or (together and (number + 1) % together == 0):
            results = step.collect()
        elif together is None:
            results = step.known()
            assert len(results) in (0, 4, 8)
        if results:
            state = results[-1].state
            told += [(float(r.loss), float(r.l0), int(r.n_dead), float(r.grad_norm)) for r in results]
    return dictionary, step, told, state


@pytest.mark.parametrize("kind", [TopK, MutualChoice])
@pytest.mark.parametrize(("n", "together"), [(12, 1), (12, 4), (50, 16), (50, None)])
def test_read_together_or_one_by_one(n: int, together: int | None, kind: type[Dictionary], anywhere: None) -> None:
    """Features die within a reading, twice, and rows become smaller than was guessed: what was begun after that is done
    again, with room for them."""
    plain, optimizer, expected, state = plain_steps(n, kind=kind)
    dictionary, step, told, got_state = captured_steps(n, together, kind=kind)
    assert expected[3][2] >= 6 and len({n_dead for _, _, n_dead, _ in expected}) > 2
    for ours, theirs in zip(told, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)
    assert step.room >= expected[-1][2] and step.optimizer.n_steps == optimizer.n_steps == n
    assert_same_state(got_state, state)
    start = topk(kind)
    for name, parameter in plain.named_parameters():
        moved = (parameter - start.get_parameter(name)).norm()
        assert (dictionary.get_parameter(name) - parameter).norm() < 2e-3 * moved, name
    for name, moment in optimizer.tensors().items():
        torch.testing.assert_close(step.optimizer.tensors()[name], moment, rtol=1e-2, atol=1e-6)


def assert_same_state(got: State, expected: State) -> None:
    """Counters exactly; what is learnt of values as near as the weights are."""
    assert type(got) is type(expected) and torch.equal(got.tokens_since_fired_F, expected.tokens_since_fired_F)
    for name, value in expected.tensors().items():
        torch.testing.assert_close(got.tensors()[name], value, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", [TopK, MutualChoice])
def test_a_bad_batch_within_a_reading_is_skipped(kind: type[Dictionary], anywhere: None) -> None:
    _, optimizer, expected, state = plain_steps(6, bad=1, kind=kind)
    _, step, told, got_state = captured_steps(6, 6, bad=1, kind=kind)
    assert step.optimizer.n_steps == optimizer.n_steps == 5
    assert_same_state(got_state, state)
    assert told[2] == pytest.approx(expected[2], rel=1e-4) and told[5] == pytest.approx(expected[5], rel=1e-4)


@pytest.mark.slow
def test_by_the_kernels_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are dead from the start: flagged, done again, and the step is made anew."""
    monkeypatch.setattr(captured, "LEAST_ROOM", 2)
    ends = []
    for make in (PlainStep, CapturedStep):
        dictionary = TopK(TopK.configure(n_features=8, k=2, k_aux=2), 6, 0)
        dictionary.total_variance.fill_(6.0)
        with torch.no_grad():
            dictionary.b_enc_F[:2] -= 50
        step = make(dictionary, Adam(trained_parameters(dictionary)), 0.2, "fp32")
        state, progress = dictionary.initial_state(), replace(PROGRESS, dead_after_tokens=6)
        state.tokens_since_fired_F[:2] = 50
        for number in range(2):
            x = rows(number)[:2, :6].contiguous()
            if isinstance(step, CapturedStep):
                step.begin(x, state, progress, 1e-2)
            else:
                state = (result := step(x, x, {}, state, progress, 1e-2)).state
        if isinstance(step, CapturedStep):
            result = step.collect()[-1]
            assert step.room >= 2
        assert result.losses["auxk"] > 0 and int(result.n_dead) >= 2
        ends.append((result, step.optimizer.tensors()))
    (expected, plain), (got, ours) = ends
    assert float(got.loss) == pytest.approx(float(expected.loss), rel=1e-4)
    for name, moment in plain.items():
        torch.testing.assert_close(ours[name], moment, rtol=1e-3, atol=1e-7)


def test_room_shrinks_where_the_dead_have_long_come_back(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "PATIENCE", 2)
    dictionary = topk()
    step, state = (
        CapturedStep(dictionary, Adam(trained_parameters(dictionary)), 0.2, "fp32"),
        dictionary.initial_state(),
    )
    state.tokens_since_fired_F[:30] = 1000
    result = step(x := rows(0) * 10, x, {}, state, PROGRESS, 1e-2)
    n_dead = int(result.n_dead)
    assert step.room == captured.room_for(n_dead, F) < F
    room = step.room
    for number, left in enumerate((room, 0, 0), start=1):
        step._device.since_F.zero_()
        result = step(x, x, {}, result.state, replace(PROGRESS, step=number), 1e-2)
        assert result.applied and int(result.n_dead) == 0 and step.room == left


def test_a_step_is_gone_before_the_next_is_made(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has copies of the weights and all buffers, for which there may be memory only once."""
    made: list[weakref.ref[StandIn]] = []

    class Counted(StandIn):
        def __init__(self, *values: Any, **named: Any) -> None:
            assert all(earlier() is None for earlier in made)
            super().__init__(*values, **named)
            made.append(weakref.ref(self))

    monkeypatch.setattr(topk_step, "DeviceStep", Counted)
    for together in (4, None):
        made.clear()
        captured_steps(16, together)
        assert len(made) > 1


def test_who_is_captured(anywhere: None) -> None:
    assert isinstance(make(topk()), CapturedStep)
    assert make(topk(), "fp32").provider == "captured-triton-fp32" and make(topk()).provider == "captured-triton-bf16"
    wide = TopK(TopK.configure(n_features=F, k=K, multi_weight=0.125), D)
    assert "has one reconstruction" in why_not_captured(wide)
    assert "decides anew" in why_not_captured(Gradient(Gradient.configure(n_features=F, k=K), D))
    assert "has one reconstruction" in why_not_captured(Matryoshka(Matryoshka.examples()[0], 16))
    assert "selects per row or over the batch" in why_not_captured(FeatureChoice(FeatureChoice.examples()[0], 16))


def test_mutual_choice_is_captured_where_its_state_is_the_one_that_the_step_keeps(anywhere: None) -> None:
    assert isinstance(make(topk(MutualChoice)), CapturedStep)

    class Own(MutualChoice):
        def next_state(self, state: State, code: SparseCode) -> State:
            return super().next_state(state, code)

    class Without(MutualChoice):
        next_state = Dictionary.next_state

    for changed in (Own, Without):
        assert "decides anew" in why_not_captured(topk(changed))


def test_not_on_a_cpu() -> None:
    assert "no Triton kernels on cpu" in why_not_captured(topk())
    assert not isinstance(make(topk()), CapturedStep)


@pytest.mark.parametrize("fails_at", [0, 4])
def test_a_card_that_does_not_take_it_trains_by_stock_operations(
    fails_at: int, anywhere: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The compiler's refusal, of the step itself or of its AuxK, comes before the run begins, and changes nothing."""

    class Refused(StandIn):
        def __init__(self, *values: Any, **named: Any) -> None:
            super().__init__(*values, **named)
            if self.settings.capacity == fails_at:
                raise RuntimeError("out of resource: shared memory\nRequired: 1 GB")

    def trained(step: Step, dictionary: Dictionary) -> Tensor:
        state = dictionary.initial_state()
        for number in range(6):
            state = step(x := rows(number), x, {}, state, PROGRESS, 1e-2).state
        return dictionary.W_dec_FD

    monkeypatch.setattr(topk_step, "DeviceStep", Refused)
    ours, plain = topk(), topk()
    ours.total_variance.fill_(0)  # as of a dictionary that a checkpoint is still to be read into
    step = make_step(ours, Adam(trained_parameters(ours)), 0.2, "auto", "fp32", N)
    assert isinstance(step, FusedStep) and step.impl == "torch"
    assert "out of resource: shared memory)" in caplog.text and "Required" not in caplog.text
    ours.total_variance.fill_(float(D))
    expected = trained(PlainStep(plain, Adam(trained_parameters(plain)), 0.2), plain)
    torch.testing.assert_close(trained(step, ours), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [TopK, MutualChoice])
def test_a_reading_is_told_with_the_state_after_it(kind: type[Dictionary], anywhere: None) -> None:
    """While the next is under way: the counters and the threshold are not those of what was begun since."""
    *_, expected = plain_steps(2, kind=kind)
    dictionary = topk(kind)
    step = CapturedStep(dictionary, Adam(trained_parameters(dictionary)), 0.2, "fp32")
    step.n_ahead = 2
    found = []
    for number in range(4):
        step.begin(rows(number), dictionary.initial_state(), PROGRESS, 1e-2)
        found.append(step.known())
    assert [len(results) for results in found] == [0, 0, 0, 2]
    assert_same_state(found[3][-1].state, expected)
    assert step.optimizer.n_steps == 2 and len(step.collect()) == 2 and step.collect() == step.known() == []


def make(dictionary: Dictionary, compute: str = "auto"):
    return make_step(dictionary, Adam(trained_parameters(dictionary)), 1.0, "auto", compute)


# --- a whole run --------------------------------------------------------------------------------------------

SHORT = {
    "training.n_tokens": 40 * 120, "training.checkpoint_every_tokens": 120 * 9, "training.impl": "auto",
    "training.compute": "fp32", "training.dead_after_tokens": 400, "training.lr": 0.001,
    "training.schedule": "constant",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["topk", "mutual_choice"])
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not(
    kind: str, anywhere: None, train_tiny: Callable, digests: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved between two readings: what is under way is waited for, and the windows of the rest are others."""
    short = SHORT | {"dictionary.kind": kind}
    train_tiny(tmp_path / "straight", **short)
    begun, n = CapturedStep.begin, 0

    def begin(self: CapturedStep, *args: object) -> None:
        nonlocal n
        n += 1
        if n == 23:
            raise KeyError("killed")
        begun(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(CapturedStep, "begin", begin)
        patch.setattr(CapturedStep, "n_ahead", 2)  # two readings and more between two checkpoints
        with pytest.raises(KeyError):
            train_tiny(tmp_path / "run", **short)
    stopped = load_newest(tmp_path / "run" / "checkpoints")
    assert stopped is not None and 0 < stopped.facts.step < 23
    assert stopped.facts.environment["provider"] == "captured-triton-fp32"
    train_tiny(tmp_path / "run", **short)
    assert digests(tmp_path / "run") == digests(tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(RunError, match="provider"):
        patch.setattr(captured, "runs_on", lambda device: False)
        train_tiny(tmp_path / "run", **short | {"training.n_tokens": 50 * 120})


@pytest.mark.parametrize("last", [1000, 5])
def test_three_bad_batches_in_a_row_stop_a_run(
    last: int, anywhere: None, train_tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where good ones follow before it is told of them."""
    begun, n = CapturedStep.begin, 0

    def begin(self: CapturedStep, x_ND: Tensor, *args: object) -> None:
        nonlocal n
        n += 1
        begun(self, x_ND * (torch.inf if 2 < n <= last else 1), *args)

    monkeypatch.setattr(CapturedStep, "begin", begin)
    with pytest.raises(RunError, match="3 steps in a row, the last being step 5"):
        train_tiny(tmp_path / "run", **SHORT)
    saved = load_newest(tmp_path / "run" / "checkpoints")
    assert saved is not None and (saved.facts.adam_steps == 2 or last == 5)
    assert all(torch.isfinite(t).all() for t in saved.weights.values())
