"""The device step with selection over the batch, under triton's interpreter, against the plain kernels one by one.

Shapes are tiny, since an interpreted step takes a second: `tests/training/test_captured.py` takes fifty with plain
kernels in place of these, and `scripts/gpu_suite.py` takes fifty on a GPU.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

pytest.importorskip("triton", reason="triton is not installed: it exists for Linux on x86-64 alone")
from triton.runtime.interpreter import InterpretedFunction

from saetools.functional.statistics import least_positive
from saetools.kernels.auxk import auxk
from saetools.kernels.backward_adam import Batch, Rule, Weights, backward_adam
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.global_topk import global_topk
from saetools.kernels.topk_step import StepRecord, StepSettings, choice
from saetools.kernels.topk_step.triton import DeviceStep
from saetools.kernels.workspace import Workspace

N, D, F, K = 5, 6, 14, 2
SETTINGS = StepSettings(
    k=K, selection="global", variance=float(D), clip_norm=0.2, compute="fp32", aux_k=2, aux_weight=1 / 32,
    dead_after=2 * N, capacity=F,
)  # fmt: skip
IN_CHUNKS = replace(SETTINGS, chunk_bytes=2 * F * 4, guess=0.4)
"""Two rows at a time, so that the last batch's threshold is tried."""


def rows(number: int, scale: float = 1.0) -> Tensor:
    return scale * (torch.randn(N, D, generator=torch.Generator().manual_seed(number)) + 0.3)


def start() -> tuple[Weights, Weights, Weights, Tensor]:
    W = normalize(torch.randn(F, D, generator=torch.Generator().manual_seed(0)), dim=1)
    weights = Weights(W.clone(), W.clone(), torch.full((F,), -0.6), torch.zeros(D))
    weights.b_enc_F[:3] -= 5  # these do not fire and are dead after two batches
    zeros = [Weights(*(torch.zeros_like(t) for t in weights)) for _ in range(2)]
    return weights, zeros[0], zeros[1], torch.zeros(F, dtype=torch.int64)


class PlainSteps:
    """The same by the reference kernels, one step after the other."""

    def __init__(self) -> None:
        self.weights, self.first, self.second, self.since_F = start()
        self.n = 0

    def __call__(self, x: Tensor) -> StepRecord:
        w, s = self.weights, SETTINGS
        centred = x - w.b_dec_D
        code, _ = global_topk(centred, w.W_enc_FD, w.b_enc_F, K * N, impl="reference")
        loss, pull, dots = decode_loss(x, code, w.W_dec_FD, w.b_dec_D, impl="reference")
        dead = (self.since_F >= s.dead_after).nonzero()[:, 0]
        matrices = (centred, pull[:, 0], w.W_enc_FD, w.b_enc_F, w.W_dec_FD)
        aux, extra = auxk(*matrices, dead, s.aux_k, s.aux_weight, impl="reference")
        task, rule = Batch(centred, code, pull, dots, 2 / (N * s.variance)), Rule(1e-3, self.n, s.clip_norm)
        norm = backward_adam(w, self.first, self.second, task, rule, extra, impl="reference")
        self.n += 1
        fired = torch.zeros(F, dtype=torch.bool)
        fired[code.indices_M.long()] = True
        self.since_F = torch.where(fired, 0, self.since_F + N)
        n_dead = int((self.since_F >= s.dead_after).sum())
        least = float(least_positive(code.values_M))
        reconstruction, l0 = float(loss.sum() / N / s.variance), len(code.values_M) / N
        return StepRecord(reconstruction, float(aux), l0, n_dead, norm, True, 0, False, least)


def begin(step: DeviceStep, x: Tensor) -> None:
    step.set_rates([1e-3])
    step.load(x)
    step.launch()


def assert_told(got: StepRecord, expected: StepRecord) -> None:
    assert got.applied and not got.flagged
    for name, value in vars(expected).items():
        assert getattr(got, name) == pytest.approx(value, rel=1e-4), name


def assert_same(step: DeviceStep, plain: PlainSteps) -> None:
    for got, expected in zip(step.backward.p.first, plain.first):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    for got, expected in zip(step.weights, plain.weights):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)  # Adam's first steps are like a sign
    assert torch.equal(step.since_F, plain.since_F)


def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a step is handed by its workspace holds NaN or the least integer."""
    monkeypatch.setattr("saetools.kernels.topk_step.triton.Workspace", lambda: Workspace(poison=True))


def test_steps_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features die, AuxK helps them, one batch has fewer positive scores than slots."""
    poisoned(monkeypatch)
    plain, step = PlainSteps(), DeviceStep(*start(), SETTINGS, N)
    assert not step.choice.guesses
    for number in range(4):
        x = rows(number, 0.4 if number == 3 else 1.0)
        expected = plain(x)
        begin(step, x)
        assert_told(step.read()[-1], expected)
        assert (expected.l0 < K) == (number == 3)
    assert expected.auxk > 0 and expected.n_dead >= 3
    assert_same(step, plain)


def test_a_wrong_guess_and_too_little_room_are_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Primed by its first batch; a batch of small rows is flagged, one of large rows, and those begun after them."""
    monkeypatch.setattr(choice, "ROOM", 2)
    monkeypatch.setattr(choice, "ROOM_OF_MANY", 2)
    monkeypatch.setattr(choice, "BLOCK", 0)
    plain, step = PlainSteps(), DeviceStep(*start(), IN_CHUNKS, N)
    step.load(rows(0))
    step.prime()
    assert step.choice.guesses and step.choice.room == 2 * K * N
    begun = [rows(0), rows(1), rows(2, 0.35), rows(1)], [rows(4), rows(5, 20.0)]
    for batches, flags in zip(begun, ([False, False, True, True], [False, True]), strict=True):
        begin(step, batches[0])
        mark = step.mark()
        for x in batches[1:]:
            begin(step, x)
        assert mark.since_F is not step.since_F
        records = step.read(mark)
        assert len(records) == 1
        records += step.read()
        assert [record.flagged for record in records] == flags
        assert [record.applied for record in records] == [not flag for flag in flags]
        for x, record in zip(batches, records, strict=True):
            if record.flagged:
                with step.exactly():
                    begin(step, x)
                record = step.read()[-1]
            assert_told(record, plain(x))
    assert_same(step, plain)


def test_a_batch_that_is_not_finite_changes_nothing_and_leaves_the_bound() -> None:
    step = DeviceStep(*start(), IN_CHUNKS, N)
    step.load(rows(0))
    step.prime()
    kept = [*step.weights, *step.backward.p.first, *step.backward.p.second, step.since_F, step.choice.bound]
    before = [t.clone() for t in kept]
    x = rows(0)
    x[3, 2] = torch.nan
    begin(step, x)
    assert not step.read()[-1].applied
    with step.exactly():
        begin(step, x)
    record = step.read()[-1]
    assert not record.applied and not record.flagged
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))


@pytest.mark.slow
def test_exact_values_and_lagged_clip() -> None:
    """bf16 chooses; values, sort keys and the least value are then those of float32."""
    settings = replace(IN_CHUNKS, compute="bf16", exact_values=True, clip="lagged")
    step = DeviceStep(*start(), settings, N, row_dtype=torch.float32)
    expected = PlainSteps()(rows(0))
    step.load(rows(0))
    step.prime()
    begin(step, rows(0))
    record = step.read()[-1]
    assert record.applied and record.least == pytest.approx(expected.least, rel=1e-5)
    assert record.norm == pytest.approx(expected.norm, rel=0.05)


@pytest.mark.parametrize("selection", ["per_row", "global"])
def test_nothing_waits_for_the_device(selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without memory have no value that a launch could ask for; `exactly` does ask."""
    monkeypatch.setattr(InterpretedFunction, "run", lambda *args, **kwargs: None)
    with torch.device("meta"):
        tensors = start_meta()
        for chunk_bytes in (2 * F * 4, 1 << 20):
            settings = replace(SETTINGS, selection=selection, chunk_bytes=chunk_bytes)  # type: ignore[arg-type]
            step = DeviceStep(*tensors, settings, N)
            waits(step.prime, selection == "global")
            begin(step, torch.empty(N, D))
            step.mark()


def start_meta() -> tuple[Weights, Weights, Weights, Tensor]:
    four = [Weights(torch.empty(F, D), torch.empty(F, D), torch.empty(F), torch.empty(D)) for _ in range(3)]
    return four[0], four[1], four[2], torch.empty(F, dtype=torch.int64)


def waits(work: Callable[[], None], expected: bool) -> None:
    if expected:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            work()
    else:
        work()


@pytest.mark.slow
@pytest.mark.parametrize(("n_features", "k"), [(256, 8), (512, 8)])
def test_there_is_room_for_the_candidates_of_gaussian_scores(n_features: int, k: int) -> None:
    """Also where as many are kept as there are groups of 32 features, or more: the bound is their least, or none."""
    numbers, n_rows = torch.Generator().manual_seed(0), 48
    made = choice.BatchChoice.make(n_rows, n_features, k, 4, 1 << 30, torch.device("cpu"))
    assert made.room < n_rows * n_features
    x, W = torch.randn(n_rows, 8, generator=numbers), torch.randn(n_features, 8, generator=numbers)
    M, flag = n_rows * k, torch.zeros(1, dtype=torch.int32)
    slots = torch.empty(M), torch.empty(M, dtype=torch.int32), torch.empty(M, dtype=torch.int32)
    made.run(x, W, torch.zeros(n_features), slots, Workspace(), 1 << 30, flag)
    assert not flag.any()
    expected = (x @ W.T).flatten().topk(M).values
    torch.testing.assert_close(slots[0].sort(descending=True).values, expected)
