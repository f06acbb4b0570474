"""Which latents a row keeps. Plain torch; the kernels room has the fast forms."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def topk_indices(scores_NF: Tensor, k: int) -> Tensor:
    """indices_NK (int64) of the k largest scores of each row, in descending order; the lowest index wins a tie.

    `torch.topk` breaks ties as it likes. One element more than k shows whether a tie straddles the boundary; only
    such rows, which are rare, are sorted stably. Ties among scores <= 0 are left alone: a ReLU makes them equal.
    """
    n_features = scores_NF.shape[1]
    if k >= n_features:
        return scores_NF.argsort(dim=1, descending=True, stable=True)
    values, indices = scores_NF.topk(k + 1, dim=1)
    ambiguous_N = (values[:, k - 1] == values[:, k]) & (values[:, k] > 0)
    indices = indices[:, :k].contiguous()
    rows = ambiguous_N.nonzero()[:, 0]
    if len(rows):
        indices[rows] = scores_NF[rows].argsort(dim=1, descending=True, stable=True)[:, :k]
    return indices


def topk_code(pre_NF: Tensor, k: int, signed: bool = False) -> tuple[Tensor, Tensor]:
    """(values_NK, indices_NK int32): ReLU of the k largest pre-activations of each row; signed: the k largest |pre|.

    Slots whose pre-activation is not positive are value 0, index 0, and pass no gradient. A row may thus have fewer
    than k active features. Source: Gao et al. 2024 (arXiv 2406.04093), equation 3 with the ReLU of their code.
    """
    indices_NK = topk_indices(pre_NF.abs() if signed else pre_NF, k)
    values_NK = pre_NF.gather(1, indices_NK)
    values_NK = values_NK if signed else values_NK.relu()
    return values_NK, indices_NK.where(values_NK != 0, 0).int()


def batch_topk_code(pre_NF: Tensor, n_kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values_M, indices_M int32, offsets_N1): ReLU of the n_kept largest pre-activations of the whole batch.

    M <= n_kept: only positive ones are kept. Ties go to the lowest row, then the lowest feature. Slots are in row
    order, features ascending. Source: Bussmann et al. 2024 (arXiv 2412.06410).
    """
    kept_NF = batch_topk_mask(pre_NF, n_kept)
    return masked_code(pre_NF, kept_NF)


def masked_code(pre_NF: Tensor, kept_NF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(values_M, indices_M int32, offsets_N1) of the entries under a mask, differentiable in the values."""
    places_M = kept_NF.flatten().nonzero()[:, 0]
    offsets_N1 = nn.functional.pad(kept_NF.sum(1).cumsum(0), (1, 0))
    return pre_NF.flatten().index_select(0, places_M), (places_M % kept_NF.shape[1]).int(), offsets_N1


@torch.no_grad()
def batch_topk_mask(scores_NF: Tensor, n_kept: int) -> Tensor:
    """mask_NF (bool) of the n_kept largest positive scores of the batch; of equal scores the first in memory order.

    A NaN is above all, as in the kernels, so that it cannot go unseen.
    """
    if n_kept == 0:
        return torch.zeros_like(scores_NF, dtype=torch.bool)
    flat = scores_NF.flatten().nan_to_num(torch.inf, torch.inf, -torch.inf)
    least = nth_largest(flat, n_kept)
    kept = flat > least.clamp_min(0)
    ties = (flat == least).nonzero()[:, 0] if least > 0 else flat.new_zeros(0, dtype=torch.int64)
    kept[ties[: n_kept - int(kept.sum())]] = True
    return kept.view_as(scores_NF)


@torch.no_grad()
def column_topk_mask(scores_NF: Tensor, budget_F: Tensor) -> Tensor:
    """mask_NF (bool) of the budget[i] largest positive scores of each column i; budgets lie in 0..N.

    Columns are worked on in groups whose budgets share their highest bit, as rows of the transposed scores, so that a
    few large budgets do not make the many small ones dear. Which of equal scores is taken is not specified; a NaN is
    above all.
    """
    scores_FN = scores_NF.T
    kept_FN = torch.zeros(scores_FN.shape, dtype=torch.bool, device=scores_NF.device)
    bits_F = torch.frexp(budget_F.double()).exponent  # 0 for budget 0, else the number of its bits
    for bits in bits_F.unique().tolist():
        columns = (bits_F == bits).nonzero()[:, 0]
        most = int(budget_F[columns].max())
        if most == 0:
            continue
        values, places = scores_FN[columns].topk(most, dim=1)
        slots = torch.arange(most, device=scores_NF.device)
        taken = (slots < budget_F[columns, None]) & ~(values <= 0)
        kept_FN[columns] = torch.zeros_like(kept_FN[columns]).scatter(1, places, taken)
    return kept_FN.T


def merged_slots(values_NK: Tensor, indices_NK: Tensor) -> Tensor:
    """values_NK where the first slot of each index holds the sum of all of its slots, and the others 0.

    Differentiable in the values. Unused slots (value 0, index 0) add nothing. Memory O(N K).
    """
    order_NK, again_NK = _repeats(indices_NK)
    places_K = torch.arange(indices_NK.shape[1], device=indices_NK.device)
    firsts_NK = torch.where(again_NK, 0, places_K).cummax(1).values  # where the run of equal indices begins
    slots_NK = torch.empty_like(order_NK).scatter(1, order_NK, order_NK.gather(1, firsts_NK))
    return torch.zeros_like(values_NK).scatter_add(1, slots_NK, values_NK)


@torch.no_grad()
def until_repeat(indices_NK: Tensor) -> Tensor:
    """mask_NK (bool) of each row's slots up to and with the first whose index an earlier slot has."""
    order_NK, again_NK = _repeats(indices_NK)
    again_NK = torch.zeros_like(again_NK).scatter(1, order_NK, again_NK)
    return again_NK.cumsum(1) - again_NK.long() == 0


def _repeats(indices_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(order_NK, again_NK): the slots of each row sorted by index, and which of these have the index of the last."""
    order_NK = indices_NK.argsort(dim=1, stable=True)
    sorted_NK = indices_NK.gather(1, order_NK)
    return order_NK, nn.functional.pad(sorted_NK[:, 1:] == sorted_NK[:, :-1], (1, 0))[:, : indices_NK.shape[1]]


@torch.no_grad()
def nth_largest(scores: Tensor, n: int) -> Tensor:
    """The n-th largest of all scores (a scalar); 0 where n is 0 or there are none."""
    n = min(n, scores.numel())
    return scores.flatten().topk(n, sorted=False).values.min() if n else scores.new_zeros(())


@torch.no_grad()
def topk_mask_reference(scores_NF: Tensor, k: int) -> Tensor:
    """mask_NF (bool) of the k largest scores per row by a full stable sort: the form that is plainly right."""
    order = scores_NF.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores_NF, dtype=torch.bool).scatter(1, order[:, :k], True)
