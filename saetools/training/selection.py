"""Which features the fused step keeps, by the kernel of its plan's rule."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saetools.dictionaries.code import SparseCode
from saetools.kernels.backend import Impl
from saetools.kernels.encode_topk import Precision, encode_by_score, encode_topk
from saetools.kernels.global_topk import global_topk
from saetools.kernels.per_feature_topm import per_feature_topm
from saetools.kernels.plan import FusedBatch, FusedPlan
from saetools.kernels.sparse import Sparse
from saetools.kernels.workspace import Workspace

GUESS = 0.97
"""Share of the last batch's threshold that a global selection tries first."""


@dataclass(frozen=True)
class Selected:
    """The code of one batch."""

    code: SparseCode  # what counts as fired
    flat: Sparse  # all slots that are decoded, in one group or another
    group_M: Tensor | None = None  # uint8, the first group of each slot of flat; None: one group
    reached_F: Tensor | None = None  # how many pre-activations reached the batch's threshold_F


class Selector:
    """Selects by one plan. It remembers the last threshold: a guess that decides its time, never its result."""

    def __init__(self, plan: FusedPlan, precision: Precision, impl: Impl, workspace: Workspace) -> None:
        self.plan, self.workspace = plan, workspace
        self.precision: Precision = precision
        self.impl: Impl = impl
        self.last_threshold = 0.0

    def __call__(self, x_ND: Tensor, W_FD: Tensor, b_F: Tensor, batch: FusedBatch) -> Selected:
        if batch.selection == "per_row":
            selected = self._per_row(x_ND, W_FD, b_F, batch)
        elif batch.selection == "global":
            selected = self._global(x_ND, W_FD, b_F, batch)
        else:
            selected = self._per_feature(x_ND, W_FD, b_F, batch)
        if self.plan.groups:
            ends = torch.tensor(self.plan.groups, dtype=torch.int32, device=x_ND.device)
            group_M = torch.bucketize(selected.flat.indices_M, ends, right=True).to(torch.uint8)
            selected = replace(selected, group_M=group_M)
        return selected

    def _per_row(self, x_ND: Tensor, W_FD: Tensor, b_F: Tensor, batch: FusedBatch) -> Selected:
        k, n_features = self.plan.k, len(b_F)
        if batch.score is not None:
            values_NK, indices_NK = encode_by_score(
                x_ND, W_FD, b_F, k, batch.score, workspace=self.workspace, impl=self.impl
            )
        else:
            widest = max(k, self.plan.multi_k)
            values_NK, indices_NK = encode_topk(
                x_ND, W_FD, b_F, widest, precision=self.precision, workspace=self.workspace, impl=self.impl
            )
        flat = Sparse.fixed(values_NK, indices_NK)
        if not self.plan.multi_k:
            return Selected(SparseCode(values_NK, indices_NK, n_features), flat)
        narrow_NK = largest_of_slots(values_NK, indices_NK, k)
        code = SparseCode(values_NK * narrow_NK, (indices_NK * narrow_NK).int(), n_features)
        return Selected(code, flat, (~narrow_NK).reshape(-1).to(torch.uint8))

    def _global(self, x_ND: Tensor, W_FD: Tensor, b_F: Tensor, batch: FusedBatch) -> Selected:
        flat, threshold = global_topk(
            *(x_ND, W_FD, b_F, self.plan.k * len(x_ND)),
            score=batch.score,
            precision=self.precision,
            guess=self.last_threshold * GUESS,
            workspace=self.workspace,
            impl=self.impl,
        )
        self.last_threshold = threshold if math.isfinite(threshold) else 0.0
        return Selected(SparseCode(flat.values_M, flat.indices_M, len(b_F), flat.offsets_N1), flat)

    def _per_feature(self, x_ND: Tensor, W_FD: Tensor, b_F: Tensor, batch: FusedBatch) -> Selected:
        assert batch.budget_F is not None
        flat, reached_F = per_feature_topm(
            *(x_ND, W_FD, b_F, batch.budget_F),
            score=batch.score,
            threshold_F=batch.threshold_F,
            workspace=self.workspace,
            impl=self.impl,
        )
        code = SparseCode(flat.values_M, flat.indices_M, len(b_F), flat.offsets_N1)
        return Selected(code, flat, reached_F=reached_F)


def largest_of_slots(values_NK: Tensor, indices_NK: Tensor, k: int) -> Tensor:
    """mask_NK of the k largest values of each row among its slots; the lowest feature wins a tie."""
    if k >= values_NK.shape[1]:
        return torch.ones_like(values_NK, dtype=torch.bool)
    cut_N1 = values_NK.topk(k, dim=1).values[:, -1:]
    mask_NK = values_NK >= cut_N1
    tied = (mask_NK.sum(1) > k).nonzero()[:, 0]
    if len(tied):
        by_feature = indices_NK[tied].argsort(dim=1, stable=True)
        order = values_NK[tied].gather(1, by_feature).argsort(dim=1, descending=True, stable=True)[:, :k]
        mask_NK[tied] = torch.zeros_like(mask_NK[tied]).scatter(1, by_feature.gather(1, order), True)
    return mask_NK
