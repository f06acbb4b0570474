"""Features in two ranges, as two processes would hold them: together they give what one process gives."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from saetools.kernels.auxk import auxk
from saetools.kernels.backend import Impl
from saetools.kernels.backward_adam import Batch, ExtraRows, Rule, Weights, backward_adam, cases, feature_squares
from saetools.kernels.backward_adam import gradients as gradients_of
from saetools.kernels.by_feature import by_feature
from saetools.kernels.decode import decode
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import encode_topk
from saetools.kernels.global_topk import global_topk
from saetools.kernels.matching_pursuit import matching_pursuit
from saetools.kernels.omp import omp
from saetools.kernels.per_feature_topm import per_feature_topm
from saetools.kernels.sparse import Sparse

N, D, F, K = 40, 8, 330, 7
RANGES = ((0, 101), (101, 229))
IMPLS: tuple[Impl, ...] = ("reference", "torch", "numba")
WITHOUT_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def whole_numbers(*shape: int, seed: int, span: int = 4) -> Tensor:
    """Products of these are exact, and ties abound."""
    return torch.randint(-span, span + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    return whole_numbers(N, D, seed=0), whole_numbers(F, D, seed=1), whole_numbers(F, seed=2)


def parts(W: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    for first, n in RANGES:
        yield W[first : first + n], b[first : first + n], first


def dense(code: Sparse) -> Tensor:
    return torch.zeros(len(code), F).index_put((code.rows(), code.indices_M.long()), code.values_M, accumulate=True)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("precision", ["fp32", "bf16-screen"])
def test_the_best_of_the_ranges_best_are_the_best(
    problem: tuple[Tensor, Tensor, Tensor], impl: Impl, precision: str
) -> None:
    x, W, b = problem
    found = [
        encode_topk(x, *part[:2], K, precision=precision, first_feature=part[2], impl=impl) for part in parts(W, b)
    ]
    values, indices = (torch.cat(pair, dim=1) for pair in zip(*found))
    for row in range(N):
        by_rank = sorted(zip((-values[row]).tolist(), indices[row].tolist()))[:K]  # equal values: the lowest index
        mine = {index: -value for value, index in by_rank if value}
        all_values, all_indices = (t[row].tolist() for t in encode_topk(x, W, b, K, precision=precision, impl=impl))
        assert mine == {index: value for index, value in zip(all_indices, all_values) if value}


@pytest.mark.parametrize("impl", IMPLS)
def test_the_batchs_best_of_the_ranges_best_are_the_best(problem: tuple[Tensor, Tensor, Tensor], impl: Impl) -> None:
    x, W, b = problem
    n_kept = 3 * N
    codes = [global_topk(x, *part[:2], n_kept, first_feature=part[2], impl=impl)[0] for part in parts(W, b)]
    rows, indices, values = (torch.cat(t) for t in zip(*((c.rows(), c.indices_M, c.values_M) for c in codes)))
    slots = sorted(zip((-values).tolist(), rows.tolist(), indices.tolist()))[:n_kept]
    expected = global_topk(x, W, b, n_kept, impl=impl)[0]
    whole = zip((-expected.values_M).tolist(), expected.rows().tolist(), expected.indices_M.tolist())
    assert slots == sorted(whole)


@pytest.mark.parametrize("impl", IMPLS)
def test_each_feature_takes_its_rows_in_either_range(problem: tuple[Tensor, Tensor, Tensor], impl: Impl) -> None:
    x, W, b = problem
    budget = torch.arange(F).remainder(5)
    found = torch.zeros(N, F)
    for W_part, b_part, first in parts(W, b):
        own = budget[first : first + len(W_part)]
        found += dense(per_feature_topm(x, W_part, b_part, own, first_feature=first, impl=impl)[0])
    assert torch.equal(found, dense(per_feature_topm(x, W, b, budget, impl=impl)[0]))


@pytest.mark.parametrize("impl", IMPLS)
def test_pursuit_by_the_better_of_the_ranges_atoms(impl: Impl) -> None:
    x, W = torch.randn(N, D, generator=torch.Generator().manual_seed(4)), normalize(whole_numbers(F, D, seed=5), dim=1)
    chosen, residual = [], x
    for _ in range(5):
        found = []
        for first, n in RANGES:
            values, indices, left = matching_pursuit(residual, W[first : first + n], 1, rule="absolute", impl=impl)
            found.append((values[:, 0], indices[:, 0] + first, left))
        first_wins = found[0][0].abs() >= found[1][0].abs()
        _, index, residual = (
            torch.where(first_wins if a.dim() == 1 else first_wins[:, None], a, b) for a, b in zip(*found)
        )
        chosen.append(index)
    _, indices, left = matching_pursuit(x, W, 5, rule="absolute", impl=impl)
    assert torch.equal(torch.stack(chosen, 1), indices)
    torch.testing.assert_close(residual, left, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_decoding_and_slots_are_sums_and_parts(problem: tuple[Tensor, Tensor, Tensor], impl: Impl) -> None:
    x, W, b = problem
    code = Sparse.fixed(*encode_topk(x, W, b, K))
    recon = torch.zeros(N, D)
    offsets, slots = by_feature(code.values_M, code.indices_M, F, impl=impl)
    for (first, n), (W_part, _, _) in zip(RANGES, parts(W, b)):
        own = code.within(first, n)
        recon += decode(own.values_M, own.indices_M, W_part, own.offsets_N1, impl=impl)
        own_offsets, own_slots = by_feature(own.values_M, own.indices_M, n, impl=impl)
        assert torch.equal(own_offsets, offsets[first : first + n + 1] - offsets[first])
        assert torch.equal(own_slots, slots[offsets[first] : offsets[first + n]])
    assert torch.equal(recon, decode(code.values_M, code.indices_M, W, code.offsets_N1, impl=impl))


def test_slots_of_other_ranges_are_unused() -> None:
    code = Sparse.fixed(torch.arange(1.0, 7.0).view(2, 3), torch.tensor([[3, 4, 5], [6, 7, 2]], dtype=torch.int32))
    own = code.within(4, 3)  # 4, 5 and 6
    assert own.values_M.tolist() == [0, 2, 3, 4, 0, 0]
    assert own.indices_M.tolist() == [0, 0, 1, 2, 0, 0]


@pytest.mark.parametrize("impl", IMPLS)
def test_nested_groups_of_either_range_have_the_residuals_of_both(
    problem: tuple[Tensor, Tensor, Tensor], impl: Impl
) -> None:
    x, W, b = problem
    values, indices = encode_topk(x, W, b, K)
    code, group, weights = Sparse.fixed(values, indices), (indices.view(-1) % 3).to(torch.uint8), (0.5, 1.0, 2.0)
    loss, pull, dots = (t.clone() for t in decode_loss(x, code, W, b[:D], group_M=group, weights=weights, impl=impl))
    own = [(code.within(first, n), W[first : first + n]) for first, n in RANGES]
    by_group = [  # what each range decodes of groups 0 .. g
        torch.stack([decode(c.values_M * (group <= g), c.indices_M, V, c.offsets_N1) for g in range(3)], 1)
        for c, V in own
    ]
    total = torch.zeros_like(dots)
    for (c, V), others in zip(own, by_group[::-1]):
        left = x[:, None] - others
        its = decode_loss(left, c, V, b[:D], group_M=group, weights=weights, impl=impl)
        torch.testing.assert_close(its[0], loss, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(its[1], pull, rtol=1e-5, atol=1e-4)
        total += its[2]
    torch.testing.assert_close(total, dots, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("impl", IMPLS)
def test_auxk_of_dead_features_in_either_range(problem: tuple[Tensor, Tensor, Tensor], impl: Impl) -> None:
    """AuxK is selection, decoding with loss, and the rows' gradients of the dead: each has ranges already."""
    x, W, b = problem
    residual, dead, k = whole_numbers(N, D, seed=9), torch.arange(0, F, 2), 6
    loss, extra = auxk(x, residual, W, b, W, dead, k, 1.0, impl=impl)
    assert extra is not None
    ends = [(first // 2 + first % 2, (first + n + 1) // 2) for first, n in RANGES]  # of the dead, in each range
    parts = [(W[dead[i:j]], b[dead[i:j]], i) for i, j in ends]
    found = [encode_topk(x, V, own, k, first_feature=i, impl=impl) for V, own, i in parts]
    values, indices = (torch.cat(pair, dim=1) for pair in zip(*found))
    best = torch.argsort(indices + (values == 0) * F, stable=True, dim=1)  # equal values: the lowest index
    values, indices = values.gather(1, best), indices.gather(1, best)
    best = torch.argsort(-values, stable=True, dim=1)[:, :k]
    code = Sparse.fixed(values.gather(1, best), indices.gather(1, best))
    own = [(code.within(i, len(V)), V) for V, _, i in parts]
    recons = [decode(c.values_M, c.indices_M, V, c.offsets_N1, impl=impl) for c, V in own]
    factor = 1 / (residual - residual.mean(0)).square().sum()
    for (c, V), others, (i, j) in zip(own, recons[::-1], ends):
        its_loss, pull, dots = decode_loss(residual - others, c, V, torch.zeros(D), impl=impl)
        torch.testing.assert_close(factor * its_loss.sum(), loss)
        dvalues, dW = -2 * factor * dots, torch.zeros(j - i, D)
        torch.testing.assert_close(
            torch.zeros(j - i).index_add(0, c.indices_M.long(), dvalues), extra.b_enc_A[i:j], rtol=1e-4, atol=1e-6
        )
        dW.index_add_(0, c.indices_M.long(), -2 * factor * c.values_M[:, None] * pull[c.rows(), 0])
        torch.testing.assert_close(dW, extra.W_dec_AD[i:j], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_orthogonal_pursuit_by_the_better_of_the_ranges_atoms(impl: Impl) -> None:
    """A step of pursuit in each range on the refitted residual; the refit asks for the chosen atoms alone."""
    x, W = torch.randn(N, D, generator=torch.Generator().manual_seed(4)), normalize(whole_numbers(F, D, seed=5), dim=1)
    atoms, chosen, residual = torch.zeros(N, 0, D), [], x
    for _ in range(4):
        found = [matching_pursuit(residual, W[i : i + n], 1, rule="absolute", impl=impl) for i, n in RANGES]
        first_wins = found[0][0].abs() >= found[1][0].abs()
        index = torch.where(first_wins, found[0][1], found[1][1] + RANGES[1][0])
        chosen.append(index)
        atoms = torch.cat([atoms, W[index.long()]], dim=1)
        coefficients = torch.linalg.lstsq(atoms.mT, x[:, :, None]).solution
        residual = x - (atoms.mT @ coefficients)[:, :, 0]
    values, indices, left = omp(x, W, 4, impl=impl)
    assert torch.equal(torch.cat(chosen, 1), indices)
    torch.testing.assert_close(residual, left, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(coefficients[:, :, 0], values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("impl", [*IMPLS, pytest.param("triton", marks=WITHOUT_TRITON)])
@pytest.mark.parametrize("clip_norm", [0.5, pytest.param(1e9, marks=pytest.mark.slow)])
def test_two_ranges_update_as_one(impl: Impl, clip_norm: float) -> None:
    case = next(c for c in cases.cases() if c.name == "extra rows").copy(torch.float32)
    rule = Rule(lr=1e-2, n_steps=3, clip_norm=clip_norm)
    x = case.batch.x_ND + case.weights.b_dec_D
    middle, n_features = 23, len(case.weights.b_enc_F)

    def rows_of(weights: Weights, span: slice) -> Weights:
        return Weights(weights.W_enc_FD[span], weights.W_dec_FD[span], weights.b_enc_F[span], weights.b_dec_D.clone())

    own = [
        Range(case.weights, case.batch.code, case.extra, slice(*ends)) for ends in ((0, middle), (middle, n_features))
    ]
    recons = [decode(r.code.values_M, r.code.indices_M, r.weights.W_dec_FD, r.code.offsets_N1, impl=impl) for r in own]
    _, pull, dots = decode_loss(x, case.batch.code, case.weights.W_dec_FD, case.weights.b_dec_D, impl=impl)
    whole = Batch(case.batch.x_ND, case.batch.code, pull, dots, case.batch.scale)
    for r, others in zip(own, recons[::-1]):
        _, its_pull, its_dots = decode_loss(x - others, r.code, r.weights.W_dec_FD, r.weights.b_dec_D, impl=impl)
        torch.testing.assert_close(its_pull, pull, rtol=1e-4, atol=1e-5)
        r.batch = Batch(case.batch.x_ND, r.code, its_pull, its_dots, case.batch.scale)
    torch.testing.assert_close(own[0].batch.dots_M + own[1].batch.dots_M, dots, rtol=1e-4, atol=1e-5)

    squares = [feature_squares(r.weights, r.batch, r.extra, impl=impl) for r in own]
    toward_b_dec = [r.toward_b_dec() for r in own]
    results = []
    for i, r in enumerate(own):
        r.extra = ExtraRows(*(getattr(r.extra, name) for name in FIELDS[:-1]), toward_b_dec[1 - i] + case.extra.b_dec_D)
        states = [rows_of(w, r.span) for w in (case.first, case.second)]
        states = [Weights(*(t.clone() for t in w)) for w in states]
        its_rule = Rule(lr=1e-2, n_steps=3, clip_norm=clip_norm, elsewhere=squares[1 - i])
        norm = backward_adam(r.weights, *states, r.batch, its_rule, r.extra, impl=impl)
        results.append((norm, r.weights, *states))
    norm = backward_adam(case.weights, case.first, case.second, whole, rule, case.extra, impl=impl)
    for got in results:
        assert got[0] == pytest.approx(norm, rel=1e-5)
    for number, expected in enumerate((case.weights, case.first, case.second), start=1):
        a, b = results[0][number], results[1][number]
        for name in ("W_enc_FD", "W_dec_FD", "b_enc_F"):
            torch.testing.assert_close(torch.cat([getattr(a, name), getattr(b, name)]), getattr(expected, name))
        torch.testing.assert_close(a.b_dec_D, expected.b_dec_D)
        torch.testing.assert_close(b.b_dec_D, expected.b_dec_D)


FIELDS = ("features_A", "W_enc_AD", "W_dec_AD", "b_enc_A", "b_dec_D")


class Range:
    """What a process that holds some of the features has."""

    batch: Batch

    def __init__(self, weights: Weights, code: Sparse, extra: ExtraRows, span: slice) -> None:
        self.span = span
        parts = (weights.W_enc_FD[span], weights.W_dec_FD[span], weights.b_enc_F[span], weights.b_dec_D)
        self.weights = Weights(*(t.clone() for t in parts))
        self.code = code.within(span.start, span.stop - span.start)
        inside = (extra.features_A >= span.start) & (extra.features_A < span.stop)
        features = extra.features_A[inside] - span.start
        rows = (getattr(extra, name)[inside] for name in FIELDS[1:-1])
        self.extra = ExtraRows(features, *rows, torch.zeros_like(extra.b_dec_D))

    def toward_b_dec(self) -> Tensor:
        """Its features' part of b_dec's gradient, which the others need."""
        through_x = gradients_of(self.weights, self.batch, None).b_dec_D
        return through_x + self.batch.scale * self.batch.pull_NGD[:, 0].sum(0)
