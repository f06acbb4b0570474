"""Selection per feature on the GPU: on rows of the transposed product, each held by one program in registers.

A feature's scores over the batch are a contiguous row of W x^T. Its budget-th largest key is found by bisection and
what reaches it is written in order, of equals the first. Chunks of features bound the memory; nothing waits for the
device but the sizes of the result. Source: our own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.by_feature.triton import sort_slots
from saetools.kernels.encode_topk.triton import CHUNK_BYTES, chunk_rows
from saetools.kernels.score import Score
from saetools.kernels.triton_parts import bisect, next_power, order_key, places
from saetools.kernels.workspace import Workspace


@triton.jit
def _largest(
    score_ptr, pre_ptr, b_ptr, budget_ptr, start_ptr, threshold_ptr, reached_ptr, row_ptr, value_ptr, N,
    WIDTH: tl.constexpr, BIAS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The budget[f] largest positive scores of one feature: rows ascending and values, from slot start[f] on.

    Slots left over get row N. COUNT: how many pre are positive and reach the feature's threshold.
    """
    f = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, WIDTH)
    inside = n < N
    b = tl.load(b_ptr + f)
    pre = tl.load(pre_ptr + f * N + n, mask=inside, other=0.0).to(tl.float32) + b
    score = pre
    if not BIAS:
        score = tl.load(score_ptr + f * N + n, mask=inside, other=0.0).to(tl.float32)
    if COUNT:
        reach = inside & (pre > 0) & (pre.to(threshold_ptr.dtype.element_ty) >= tl.load(threshold_ptr + f))
        tl.store(reached_ptr + f, tl.sum(reach.to(tl.int64), axis=0))
    budget = tl.load(budget_ptr + f).to(tl.int32)
    if budget > 0:
        key = tl.where(score != score, 2147483647, order_key(score))
        key = tl.where(inside & (key > 0), key, 0)
        # the least positive key is 1: with fewer positive scores than the budget all of them are taken
        threshold = bisect(key, tl.minimum(budget, 1), tl.maximum(tl.max(key, axis=0), 1), budget, budget)
        taken, place, _ = places(key, threshold, budget)
        out = tl.load(start_ptr + f) + place
        tl.store(row_ptr + out, n, mask=taken)
        tl.store(value_ptr + out, pre, mask=taken)


def select_into(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    budget_F: Tensor,
    starts_F: Tensor,
    out: tuple[Tensor, Tensor],
    score: Score | None,
    counted: tuple[Tensor | None, Tensor | None],
    workspace: Workspace,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Write rows and values of each feature's slots from its start on, and counts; no synchronisation."""
    (N, _), F = x_ND.shape, len(W_FD)
    chunk = chunk_rows(F, N, x_ND.element_size(), chunk_bytes)
    pre_CN = workspace.get("per_feature.pre", (chunk, N), x_ND.dtype, x_ND.device)
    threshold_F, reached_F = counted
    for start in range(0, F, chunk):
        part = slice(start, min(start + chunk, F))
        pre, b = torch.mm(W_FD[part], x_ND.T, out=pre_CN[: part.stop - start]), b_F[part].float()
        scores = pre
        if score is not None:
            scores = score.of((pre.float() + b[:, None]).T, slice(None), part).T.contiguous()
        _largest[(len(pre),)](
            scores, pre, b, budget_F[part], starts_F[part], b if threshold_F is None else threshold_F[part],
            budget_F if reached_F is None else reached_F[part], *out, N, WIDTH=next_power(N), BIAS=score is None,
            COUNT=reached_F is not None, num_warps=max(1, min(16, next_power(N) // 512)),
        )  # fmt: skip


def per_feature_topm(
    x_ND: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    budget_F: Tensor,
    score: Score | None,
    counted: tuple[Tensor | None, Tensor | None],
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference; the counts of `counted` = (threshold_F, reached_F) are written where they are given."""
    N, F, device = len(x_ND), len(W_FD), x_ND.device
    ends_F = budget_F.cumsum(0)
    starts_F, n_slots = ends_F - budget_F, int(ends_F[-1])
    features_M = torch.arange(F, device=device).repeat_interleave(budget_F, output_size=n_slots)
    rows_M = torch.full((n_slots,), N, dtype=torch.int32, device=device)
    values_M = torch.empty(n_slots, dtype=torch.float32, device=device)
    select_into(x_ND, W_FD, b_F, budget_F, starts_F, (rows_M, values_M), score, counted, workspace)
    ordered = sort_slots(rows_M, N, workspace)
    offsets_N1 = ordered.offsets_F1.long()
    slots = ordered.order_M[: int(offsets_N1[-1])].long()
    return values_M[slots].to(x_ND.dtype), features_M[slots].int(), offsets_N1
