"""The Triton kernels under triton's interpreter, and the whole device step against the plain kernels one by one.

No GPU is needed: `scripts/gpu_suite.py` runs the same cases, and larger ones, on one.
"""

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

pytest.importorskip("triton", reason="triton is not installed: it exists for Linux on x86-64 alone")

from saetools.kernels.auxk import auxk
from saetools.kernels.auxk import triton as auxk_kernels
from saetools.kernels.backward_adam import Batch, ExtraRows, Rule, Weights, backward_adam, gradients
from saetools.kernels.backward_adam import cases as backward_cases
from saetools.kernels.backward_adam import triton as backward
from saetools.kernels.backward_adam.control import Control
from saetools.kernels.backward_adam.tiles import Tile
from saetools.kernels.branch import Branch
from saetools.kernels.by_feature.triton import sort_slots
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import encode_topk
from saetools.kernels.encode_topk import triton as encode
from saetools.kernels.global_topk import cases as global_cases
from saetools.kernels.global_topk import global_topk
from saetools.kernels.global_topk import triton as global_kernels
from saetools.kernels.matching_pursuit import cases as pursuit_cases
from saetools.kernels.oracle import with_gaps
from saetools.kernels.per_feature_topm import per_feature_topm
from saetools.kernels.score import Score
from saetools.kernels.sparse import Sparse
from saetools.kernels.topk_step import StepSettings
from saetools.kernels.topk_step.triton import DeviceStep
from saetools.kernels.workspace import Workspace

T = TypeVar("T")
N, D, F, K, K_AUX = 16, 20, 40, 4, 5
SETTINGS = StepSettings(
    k=K,
    variance=float(D),
    clip_norm=0.54,
    compute="fp32",
    aux_k=K_AUX,
    aux_weight=1 / 32,
    dead_after=2 * N,
    capacity=20,
)


@pytest.mark.parametrize("op", ["encode_topk", "decode", "decode_loss", "backward_adam", "auxk"])
def test_small_cases(op: str) -> None:
    most = 600 if op == "backward_adam" else 900
    importlib.import_module(f"saetools.kernels.{op}.cases").verify("triton", most=most)


@pytest.mark.parametrize("most", [400, pytest.param(13_000, marks=pytest.mark.slow)])
def test_gradients_themselves(most: int) -> None:
    backward_cases.verify_gradients("triton", most=most)


def test_whole_windows_of_a_feature_are_summed_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of two slots, of which a feature has some six; the norm is measured, and only bounded."""
    monkeypatch.setattr(backward, "WINDOW", 2)
    for clip_norm in (0.5, 1e9):
        case = backward_cases.random_case("windows", 12, 3, 3, 5, 2, n_extra=2, shrink=0.3, clip_norm=clip_norm)
        backward_cases.verify_case(case, "triton")


@pytest.mark.slow
@pytest.mark.parametrize("op", ["encode_topk", "decode", "decode_loss", "backward_adam", "auxk"])
def test_all_cases(op: str) -> None:
    importlib.import_module(f"saetools.kernels.{op}.cases").verify("triton", most=13_000)


@pytest.mark.slow
def test_selection_over_the_batch_in_all_cases() -> None:
    global_cases.verify("triton", most=310, few=True)


@pytest.mark.slow
def test_selection_per_feature_in_all_cases() -> None:
    importlib.import_module("saetools.kernels.per_feature_topm.cases").verify("triton", most=250)


@pytest.mark.slow
@pytest.mark.parametrize("with_gram", [True, False])
def test_pursuits_in_all_cases(with_gram: bool) -> None:
    pursuit_cases.verify("triton", with_gram, most=250)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_largest_of_a_batch() -> None:
    """In one chunk and in several; with a good guess, one too high, and too little room, which both are flagged."""
    x, W, b = normal(5, 8), normal(70, 8, seed=1), normal(70, seed=2)
    expected, threshold = global_topk(x, W, b, 11, impl="reference")
    rows = {"chunk_bytes": 3 * 70 * 4}
    guess = global_kernels.bound_of(0.9 * threshold, x.device)
    for options in ({}, rows, rows | {"bound": guess}):
        kept = global_kernels.select(x, W, b, 11, None, Workspace(poison=True), room=70, **options)
        assert not kept.flag and torch.equal(kept.indices_M, expected.indices_M)
        assert torch.equal(kept.offsets_N1, expected.offsets_N1)
        assert kept.threshold.view(torch.float32).item() == pytest.approx(threshold, rel=1e-6)
        torch.testing.assert_close(kept.values_M, expected.values_M)
    for room, share in ((11, 0.5), (40, 1.1)):
        bound = global_kernels.bound_of(share * threshold, x.device)
        assert global_kernels.select(x, W, b, 11, None, Workspace(poison=True), room=room, bound=bound).flag


def test_ties_over_a_batch_go_to_the_first_and_a_nan_is_kept() -> None:
    x = torch.ones(4, 1)
    x[2] = torch.nan
    W, b = torch.ones(3, 1), torch.tensor([0.0, 1.0, -2.0])
    for n_kept in (5, 12):
        got, reached = global_topk(x, W, b, n_kept, impl="triton", workspace=Workspace(poison=True))
        expected, _ = global_topk(x, W, b, n_kept, impl="reference")
        assert torch.equal(got.indices_M, expected.indices_M) and torch.equal(got.offsets_N1, expected.offsets_N1)
        torch.testing.assert_close(got.values_M, expected.values_M, equal_nan=True)
        assert reached == (2.0 if n_kept == 5 else 0.0)


@pytest.mark.parametrize("kind", ["absolute", pytest.param("gradient", marks=pytest.mark.slow)])
def test_scores_choose_and_values_are_kept(kind: str) -> None:
    x, W, b = normal(2, 6), normal(40, 6, seed=1), normal(40, seed=2)
    score = Score(kind, normal(2, 6, seed=3), W, 0.5)
    options = {"score": score, "workspace": Workspace(poison=True)}
    for guess in (0.0, 0.1):
        got, reached = global_topk(x, W, b, 9, guess=guess, impl="triton", **options)
        expected, threshold = global_topk(x, W, b, 9, score=score, impl="reference")
        global_cases.assert_same(kind, got, expected)
        assert reached == threshold
    options["score"] = Score(kind, score.grad_ND, W[:5], 0.5)
    budget = torch.ones(5).long()
    per = [per_feature_topm(x, W[:5], b[:5], budget, impl=i, **options)[0] for i in ("triton", "reference")]
    for part in ("indices_M", "offsets_N1"):
        assert torch.equal(getattr(per[0], part), getattr(per[1], part))
    torch.testing.assert_close(per[0].values_M, per[1].values_M)


def test_a_bf16_product_screens_and_float32_decides() -> None:
    x, W, b = normal(3, 24), normal(96, 24, seed=1), normal(96, seed=2)
    values, indices = encode_topk(x, W, b, 4, precision="bf16-screen", impl="triton")
    plain, chosen = encode_topk(x, W, b, 4, impl="reference")
    torch.testing.assert_close(values.sort(1).values, plain.sort(1).values)
    assert torch.equal(indices.sort(1).values, chosen.sort(1).values)
    got, _ = global_topk(x, W, b, 12, precision="bf16-screen", impl="triton", workspace=Workspace(poison=True))
    expected, _ = global_topk(x, W, b, 12, impl="reference")
    assert torch.equal(got.indices_M, expected.indices_M) and torch.equal(got.offsets_N1, expected.offsets_N1)
    torch.testing.assert_close(got.values_M, expected.values_M)


def test_the_largest_of_each_feature() -> None:
    """Equal scores go to the first rows; a NaN is kept; a budget of more than are positive."""
    x = torch.tensor([[1.0], [2.0], [1.0], [-1.0], [1.0]])
    W, b = torch.tensor([[1.0], [0.0], [1.0], [-1.0]]), torch.tensor([0.0, 3.0, 0.0, 0.0])
    budget = torch.tensor([2, 3, 0, 5])
    for rows in (x, torch.where(x < 0, torch.nan, x)):
        (got, reached), (expected, all_reached) = (
            per_feature_topm(rows, W, b, budget, threshold_F=torch.ones(4), workspace=Workspace(poison=True), impl=impl)
            for impl in ("triton", "reference")
        )
        assert torch.equal(got.indices_M, expected.indices_M) and torch.equal(got.offsets_N1, expected.offsets_N1)
        torch.testing.assert_close(got.values_M, expected.values_M, equal_nan=True)
        assert torch.equal(reached, all_reached)


@pytest.mark.parametrize("with_gram", [True, False])
def test_a_pursuit_and_its_way_back(with_gram: bool) -> None:
    once = {"rule": "absolute", "reselect": False}
    pursuit_cases.verify_case(pursuit_cases.random_case("each atom once", 4, 9, 33, 4, **once), "triton", with_gram)


def test_one_kernel_encodes_as_two() -> None:
    """By value: the one rounds the sum, the other the product."""
    g = torch.Generator().manual_seed(3)
    x, W, b = torch.randn(9, 32, generator=g), torch.randn(100, 32, generator=g), torch.randn(100, generator=g)
    pre, best = torch.full((9, 100), torch.nan), torch.full((9, 4), torch.nan)
    encode.encode_group_max(x, W, b, pre, best)
    torch.testing.assert_close(pre, x @ W.T + b)
    padded = torch.nn.functional.pad(pre, (0, 28), value=-torch.inf)
    assert torch.equal(best, padded.view(9, 4, 32).amax(2))


@pytest.mark.parametrize(
    ("F", "n_kept", "n_groups"), [(2112, 600, 33), pytest.param(66_000, 2500, 1000, marks=pytest.mark.slow)]
)
def test_candidates_of_a_row_lie_in_many_groups(F: int, n_kept: int, n_groups: int) -> None:
    """More than are looked into at a time (32), and (slow) groups more than are listed at a time (2,048)."""
    g = torch.Generator().manual_seed(0)
    x, W = torch.randint(-4, 5, (2, 4), generator=g).float(), torch.randint(-4, 5, (F, 4), generator=g).float()
    x[1] *= 10
    got, reached = global_topk(x, W, torch.zeros(F), n_kept, impl="triton", workspace=Workspace(poison=True))
    expected, threshold = global_topk(x, W, torch.zeros(F), n_kept, impl="reference")
    assert reached == threshold and torch.equal(got.offsets_N1, expected.offsets_N1)
    assert torch.equal(got.indices_M, expected.indices_M) and torch.equal(got.values_M, expected.values_M)
    assert len(got.indices_M.div(32, rounding_mode="floor").unique()) >= n_groups


def test_many_survivors_are_narrowed_down() -> None:
    """More elements reach the groups' threshold than the last stage holds: whole groups are large, and all equal."""
    pre = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).round()
    pre[:, 32:128] += 10
    pre[1] = 7.0
    values, indices = encode_topk(pre, torch.eye(256), torch.zeros(256), 5, impl="triton")
    expected = torch.sort(pre, dim=1, descending=True, stable=True)
    assert torch.equal(values.sort(1, descending=True).values, expected.values[:, :5])
    assert torch.equal(indices.sort(1).values, expected.indices[:, :5].sort(1).values.int())


def test_a_nan_is_among_the_largest() -> None:
    pre = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    pre[1, 40] = torch.nan
    values, _ = encode_topk(
        pre.nan_to_num(), torch.eye(64), torch.where(pre[1].isnan(), torch.nan, 0.0), 3, impl="triton"
    )
    assert not torch.isfinite(values).all(dim=1).any()


@pytest.mark.parametrize("n_slots", [0, 1, 700])
def test_slots_are_sorted_stably(n_slots: int) -> None:
    keys = torch.randint(0, 9, (n_slots,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    found = sort_slots(keys, 8)  # key 8: not in use
    used = int((keys < 8).sum())
    expected = torch.sort(keys, stable=True)
    assert torch.equal(found.keys_M, expected.values)
    assert torch.equal(found.order_M[:used].long(), expected.indices[:used])
    assert torch.equal(found.offsets_F1.long(), torch.searchsorted(expected.values, torch.arange(9)))


def batch(number: int) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(number)) + 0.3


def start(n_features: int = F, age: int = 0) -> tuple[Weights, Weights, Weights, Tensor]:
    """Weights, moments, and tokens since each feature fired: `age` for those that will not fire."""
    W = normalize(torch.randn(n_features, D, generator=torch.Generator().manual_seed(0)), dim=1)
    weights = Weights(W.clone(), W.clone(), torch.zeros(n_features), torch.zeros(D))
    weights.W_enc_FD[:9] *= 0.2
    since_F = torch.zeros(n_features, dtype=torch.int64)
    since_F[:9] = age
    zeros = [Weights(*(torch.zeros_like(t) for t in weights)) for _ in range(2)]
    return weights, zeros[0], zeros[1], since_F


class PlainSteps:
    """The same step by the reference kernels, one after the other; the lagged clip too."""

    def __init__(self, settings: StepSettings, age: int = 0) -> None:
        self.settings, self.last_norm, self.n = settings, 0.0, 0
        self.weights, self.first, self.second, self.since_F = start(age=age)

    def __call__(self, x: Tensor, lr: float) -> tuple[float, float, float]:
        """(reconstruction, AuxK, norm)"""
        w, s = self.weights, self.settings
        centred = x - w.b_dec_D
        values, indices = encode_topk(centred, w.W_enc_FD, w.b_enc_F, s.k, impl="reference")
        code = Sparse.fixed(values, indices)
        loss, pull, dots = decode_loss(x, code, w.W_dec_FD, w.b_dec_D, impl="reference")
        dead = (self.since_F >= s.dead_after).nonzero()[:, 0]
        matrices = (centred, pull[:, 0], w.W_enc_FD, w.b_enc_F, w.W_dec_FD)
        aux, extra = auxk(*matrices, dead, s.aux_k, s.aux_weight, impl="reference")
        task = Batch(centred, code, pull, dots, 2 / (N * s.variance))
        clip_norm = s.clip_norm
        if s.clip == "lagged":  # the last norm's coefficient, got from this norm by another bound
            trial = [Weights(*(t.clone() for t in four)) for four in (w, self.first, self.second)]
            norm = backward_adam(*trial, task, Rule(lr, self.n, 1e9), extra, impl="reference")
            clip_norm = norm * s.clip_norm / max(self.last_norm, s.clip_norm)
        rule = Rule(lr, self.n, clip_norm)
        norm = backward_adam(w, self.first, self.second, task, rule, extra, impl="reference")
        self.last_norm, self.n = norm, self.n + 1
        fired = torch.zeros(F, dtype=torch.bool)
        fired[indices[values > 0].long()] = True
        self.since_F = torch.where(fired, 0, self.since_F + N)
        return float(loss.mean() * D / s.variance / D), float(aux), norm


def assert_same(step: DeviceStep, plain: PlainSteps) -> None:
    for got, expected in zip((*step.weights, *step.backward.p.first), (*plain.weights, *plain.first)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(step.since_F, plain.since_F)


@pytest.mark.parametrize(
    "clip, route, takes", [("exact", "cublas", False), ("lagged", "cublas", True), ("exact", "fused", True)]
)
def test_steps_are_the_plain_ones(clip: str, route: str, takes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch is clipped; one is not, though the bound of its norm is too high; of the last it is low enough. AuxK
    takes the pre-activations of the dead from those of all, which are made in chunks, or makes them."""
    monkeypatch.setattr(auxk_kernels, "TAKEN_ABOVE", 0 if takes else 1 << 30)
    settings = replace(SETTINGS, clip=clip, n_ahead=2, route=route, chunk_bytes=5 * F * 4)
    plain, step = PlainSteps(settings, age=N), DeviceStep(*start(age=N), settings, N)
    needed = []
    for number in range(3):
        x = batch(number) * (1.0 if number < 2 else 0.7)
        reconstruction, aux, norm = plain(x, 1e-3)
        step.set_rates([1e-3])
        step.load(x)
        step.launch()
        record = step.read()[-1]
        assert record.applied and not record.flagged
        assert record.reconstruction == pytest.approx(reconstruction, rel=1e-5)
        assert record.auxk == pytest.approx(aux, rel=1e-5) and record.norm == pytest.approx(norm, rel=1e-5)
        assert record.n_dead == int((plain.since_F >= settings.dead_after).sum())
        needed.append((norm > settings.clip_norm, bool(step.control.values[Control.NEEDED])))
        bound = torch.cat([step.backward.bound_parts, step.backward.g_b_dec.square()]).sum().sqrt()
        assert clip == "lagged" or norm < bound < 2 * norm
        assert number == 0 or step.auxk.code_NC.any()
    assert aux > 0
    assert clip == "lagged" or needed == [(True, True), (False, True), (False, False)]
    assert_same(step, plain)


@pytest.mark.parametrize("n_dead", [40, 64, 65, 130])
def test_of_too_many_dead_features_those_are_helped_that_are_dead_for_longest(
    n_dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auxk_kernels, "TRITON_CAPACITY", 64)
    since_F = torch.zeros(150, dtype=torch.int64)
    since_F[torch.randperm(150)[:n_dead]] = torch.randint(5, 9, (n_dead,))
    work = auxk_kernels.DeviceAuxK(2, 150, 8, 64, 3, 1.0, torch.float32, torch.device("cpu"))
    W_FD, b_F = torch.randn(150, 8), torch.randn(150)
    work.prepare(W_FD, b_F, -W_FD, since_F, 5)
    longest = sorted(range(150), key=lambda f: (-int(since_F[f]), f))[: min(64, n_dead)]
    helped, n = sorted(longest), len(longest)
    assert work.list_C[:n].tolist() == helped and int(work.n_dead) == n_dead
    assert torch.equal(work.bias_C[:n], b_F[helped]) and (work.bias_C[n:] == -torch.inf).all()
    assert torch.equal(work.rows_enc_CD[:n], W_FD[helped]) and torch.equal(work.rows_dec_CD[:n], -W_FD[helped])
    assert work.extra.place_F.tolist() == [helped.index(f) if f in longest else -1 for f in range(150)]


def test_few_kernels_serve_many_capacities() -> None:
    """A batch that is done again has another number of dead features, for which nothing should have to be compiled."""
    kernels = set()
    for capacity in range(64, 2112, 64):
        work = auxk_kernels.DeviceAuxK(1, 4096, 8, capacity, 2048, 1.0, torch.bfloat16, torch.device("meta"))
        kernels.add((work.k, work.group, work.scratch.shape[1]))
    assert len(kernels) <= 8


def test_no_argument_has_to_be_contiguous() -> None:
    """Beside what the cases hold: kernels read what lies there, gap or not."""
    case = backward_cases.random_case("", 5, 3, 9, 4, n_groups=2, n_extra=4, shrink=0.3)
    tensors = case.weights, case.batch, case.extra
    for got, expected in zip(gradients(*with_gaps(tensors), impl="triton"), gradients(*tensors, impl="reference")):
        torch.testing.assert_close(got, expected)
    tensors = normal(5, 4), normal(9, 4, seed=1), normal(9, seed=2), torch.arange(9) % 6
    results = []
    for impl, change in (("triton", with_gaps), ("reference", lambda same: same)):
        x, W, b, budget, threshold = change((*tensors, normal(9, seed=3)))
        results.append(per_feature_topm(x, W, b, budget, threshold_F=threshold, impl=impl))
    (got, reached), (expected, all_reached) = results
    assert torch.equal(got.indices_M, expected.indices_M) and torch.equal(got.offsets_N1, expected.offsets_N1)
    torch.testing.assert_close(got.values_M, expected.values_M)
    assert torch.equal(reached, all_reached)


def test_an_infinite_bound_clips_nothing() -> None:
    wide, unbound = (backward_cases.random_case("", 3, 2, 4, 5) for _ in range(2))
    for case, clip_norm in ((wide, 1e9), (unbound, torch.inf)):
        rule = replace(case.rule, clip_norm=clip_norm)
        assert backward_adam(case.weights, case.first, case.second, case.batch, rule, impl="triton") > 1
    assert all(torch.equal(a, b) for a, b in zip(wide.weights, unbound.weights))


def test_the_bound_holds_for_extra_rows_of_any_sign() -> None:
    """They double the gradient of every feature, by a factor below 0, as AuxK's is."""
    case = backward_cases.random_case("", 3, 2, 4, 5)
    own = gradients(case.weights, case.batch)
    extra = ExtraRows(torch.arange(4), -own.W_enc_FD, -own.W_dec_FD, -own.b_enc_F, torch.zeros(5))
    tensors = case.weights, case.first, case.second, case.batch, extra
    problem, slots = backward.problem_of(*tensors, Workspace(poison=True))
    control = Control.make(case.rule, torch.device("cpu"))
    control.values[Control.EXTRA] = -1
    back = backward.Backward(problem, control, case.rule)
    back.windows(slots)
    back.sums(slots)
    back.measure(slots)
    norm = torch.cat([g.flatten() for g in tuple(own)[:2]]).norm()
    bound = float(back.bound_parts.sum().sqrt())
    assert norm < back.norm_parts.sum().sqrt() < bound
    back.column_sums()
    back.b_dec_gradient()
    for elsewhere, needed in ((0.0, 0), (200 * bound**2, 1)):  # the squares of features that another process holds
        back.rule = replace(case.rule, clip_norm=10 * bound, elsewhere=elsewhere)
        back.need()
        assert control.values[Control.NEEDED] == needed


def small_step(held: bool) -> DeviceStep:
    """Of 4 rows and 20 features, the first 9 of which are dead."""
    tile = Tile(16, 1, 2, 7, held=held)
    settings = replace(SETTINGS, compute="bf16", capacity=10)
    return DeviceStep(*start(20, age=2 * N), settings, 4, row_dtype=torch.float32, tiles=(tile, tile))


@pytest.mark.parametrize("n", [3, 4, 7])
def test_auxk_of_equal_rows_is_nothing(n: int) -> None:
    """Their variance is the rounding of two sums, by which the loss was divided."""
    settings = replace(SETTINGS, capacity=10)
    step = DeviceStep(*start(20, age=2 * N), settings, n, row_dtype=torch.float32)
    step.set_rates([1e-3])
    step.load(batch(0)[:1].expand(n, -1).contiguous())
    step.launch()
    record = step.read()[-1]
    assert record.applied and record.auxk == 0


@pytest.mark.parametrize("selection", ["per_row", "global"])
def test_a_dense_product_decodes_as_gathers_do(selection: str) -> None:
    """In row chunks of two; to the rounding of the code to bf16."""
    settings = replace(SETTINGS, compute="bf16", selection=selection, capacity=0, chunk_bytes=2 * 20 * 2)
    step = DeviceStep(*start(20), settings, 5, row_dtype=torch.float32)
    step.workspace = Workspace(poison=True)
    step.weights.b_enc_F[9:] += 0.0123
    step.load(batch(0)[:5])
    step.prime()
    step.encode()
    found = []
    assert step.dense
    for step.dense in (True, False):
        step.pull_NGD.fill_(torch.nan)
        step.loss_NGB.fill_(torch.nan)
        step.residuals()
        found.append((step.pull_NGD.float(), step.loss_NGB.sum(2)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0.03)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.01, atol=0)
    assert not torch.equal(found[0][0], found[1][0])


class Late(Branch):
    """Work beside the launches is done as late as it may be, where it is joined: on a GPU it may be so."""

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        done: list[T] = []
        return lambda: done[0] if done else done.append(work()) or done[0]  # type: ignore[func-returns-value]


@pytest.mark.parametrize("other", ["atoms held in registers", "branches run late"])
def test_the_same_to_the_last_bit(other: str) -> None:
    """Atoms whose norms are waited for in registers; what runs beside other launches done first, and done last."""
    one, two = small_step(False), small_step(other.startswith("atoms"))
    if other.startswith("branches"):
        two.branch = Late(two.branch.device)
    for number in range(1 if other.startswith("atoms") else 2):
        for step in (one, two):
            step.set_rates([1e-3])
            step.load(batch(number)[:4])
            step.launch()
    record = one.read()[-1]
    assert record.applied and record.auxk > 0 and one.auxk.code_NC.any()
    assert all(torch.equal(a, b) for a, b in zip(state_of(one), state_of(two), strict=True))


@pytest.mark.slow
def test_dead_features_without_room_for_auxk_are_flagged_and_done_again() -> None:
    """From the first on all are flagged, and doing them again in turn is as if there had always been room."""
    plain = PlainSteps(SETTINGS)
    step = DeviceStep(*start(), replace(SETTINGS, capacity=0), N)
    for number in range(4):
        plain(batch(number), 1e-3)
        step.set_rates([1e-3])
        step.load(batch(number))
        step.launch()
    records = step.read()
    assert [record.flagged for record in records] == [False, False, True, True]
    assert [record.applied for record in records] == [True, True, False, False]
    for number in (2, 3):
        step.set_rates([1e-3])
        step.load(batch(number))
        with step.exactly():
            step.launch()
        again = step.read()[-1]
        assert again.applied and not again.flagged and again.auxk > 0
    assert_same(step, plain)


@pytest.mark.slow
def test_a_rehearsal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a capture does first: two launches, and tiles tried on copies."""
    monkeypatch.setattr(backward, "fastest", lambda works: len([work() for work in works]) - 1)
    monkeypatch.setattr(backward, "SAMPLED", 8)
    monkeypatch.setattr(backward, "_TILES", {})
    step = DeviceStep(*start(), replace(SETTINGS, compute="bf16"), 2)
    step.load(batch(0)[:2])
    before = [t.clone() for t in state_of(step)]
    step.rehearse()
    assert len(backward._TILES) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(step), strict=True))


def state_of(step: DeviceStep) -> list[Tensor]:
    p = step.backward.p
    return [*p.weights, *p.first, *p.second, step.since_F, *(step.low or ())]


@pytest.mark.parametrize("clip", ["exact", pytest.param("lagged", marks=pytest.mark.slow)])
def test_a_batch_that_is_not_finite_changes_nothing(clip: str) -> None:
    step = DeviceStep(*start(20), replace(SETTINGS, clip=clip, capacity=10), 4)
    for bad in (torch.nan, torch.inf):
        x = batch(0)[:4]
        x[3, 5] = bad
        before = [t.clone() for t in state_of(step)]
        step.set_rates([1e-3])
        step.load(x)
        step.launch()
        assert not step.read()[-1].applied
        assert all(torch.equal(a, b) for a, b in zip(before, state_of(step), strict=True))


def test_bf16_stays_near_float32() -> None:
    plain = PlainSteps(SETTINGS, age=2 * N)
    step = DeviceStep(*start(age=2 * N), replace(SETTINGS, compute="bf16"), N, row_dtype=torch.float32)
    for number in range(2):
        *_, norm = plain(batch(number), 1e-4)
        step.set_rates([1e-4])
        step.load(batch(number))
        step.launch()
        assert step.read()[-1].norm == pytest.approx(norm, rel=0.15)
    torch.testing.assert_close(
        step.low[1].float(), step.weights.W_dec_FD, rtol=2**-7, atol=0
    )  # the interpreter cuts off


def test_a_batch_of_another_shape_is_refused() -> None:
    step = DeviceStep(*start(), SETTINGS, N)
    with pytest.raises(ValueError, match=rf"\({N - 1}, {D}\)"):
        step.load(batch(0)[1:])


def test_the_fastest_route_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians of runs in turn; events of the device are played, with a clock that the routes move on."""
    clock, cost, ran = [0.0], {"cublas": 3.0, "fused": 2.0}, []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = clock[0]

        def synchronize(self) -> None: ...

        def elapsed_time(self, other: "Event") -> float:
            return other.at - self.at

    def run(route: encode.Route, start: int) -> None:
        assert start == 0
        late = 100.0 if len(ran) == 7 else 0.0  # one run of the fused route is held up
        ran.append(route)
        clock[0] += cost[route] + late

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(encode, "_ROUTES", {})
    key = (8, 16, 4, 64, 2, torch.bfloat16, torch.device("cuda"))
    for _ in range(2):
        assert encode._fastest_route(key, True, run) == "fused"
    assert ran == ["cublas", "fused"] * 9
    assert encode._fastest_route((*key[:-1], torch.device("cpu")), True, run) == "cublas" and len(ran) == 18


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["a", "b", "c"])
def test_every_kernel_compiles_for_hopper(shape: str) -> None:
    program = Path(__file__).with_name("offline.py")
    done = subprocess.run([sys.executable, program, shape], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert (
        "_update" in done.stdout
        and "_select" in done.stdout
        and "_keep_chosen" in done.stdout
        and "_label" in done.stdout
    )
