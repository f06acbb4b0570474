"""A code whose rows share their slots (selection over the batch), on the device, and the bound of the next batch.

Where the pre-activations of a batch fit into one chunk, candidates are those that reach the bound of the group maxima,
and nothing is guessed. Where they come in several, that bound would cost a second product: the last batch's threshold,
which lies on the device, is tried instead, lowered. A batch in which too few reach it, or more than there is room for,
is flagged.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.encode_topk.triton import chunk_rows
from saetools.kernels.global_topk.triton import BLOCK, Kept, select
from saetools.kernels.workspace import Workspace

ROOM = 4
"""Candidates for which there is room, as a multiple of the slots: where one Gaussian score in 2,000 is kept, 1.8 times
as many reach 0.95 of the threshold, and four times as many once the threshold has risen by 9 %."""
ROOM_OF_MANY = 20
"""The same where more than one feature in 36 is kept: as many are kept as there are groups, or more, so that the bound
is the least of the maxima, or none, which 8 to 10 times as many Gaussian scores reach; half of all are 18 times."""


@triton.jit
def _label(off_ptr, val_ptr, idx_ptr, row_ptr, key_ptr, least_ptr, N, M, F, SIZE: tl.constexpr):
    """The slots of one row (of the last program: the void ones): their row, sort key (F: not in use), least value."""
    row = tl.program_id(0)
    start = tl.load(off_ptr + row).to(tl.int32)
    end = tl.load(off_ptr + row + 1, mask=row < N, other=M).to(tl.int32)
    least = float("inf")
    for s0 in range(start, end, SIZE):
        s = s0 + tl.arange(0, SIZE)
        v = tl.load(val_ptr + s, mask=s < end, other=0.0)
        index = tl.load(idx_ptr + s, mask=s < end, other=0)
        tl.store(row_ptr + s, row + 0 * s, mask=s < end)
        tl.store(key_ptr + s, tl.where(v != 0, index, F), mask=s < end)
        least = tl.minimum(least, tl.min(tl.where(v > 0, v, float("inf")), axis=0))
    tl.store(least_ptr + row, least)


@triton.jit
def next_bound(least_ptr, n_least, threshold_ptr, bound_ptr, share, applied, SIZE: tl.constexpr):
    """The least positive value of all rows (0: there is none); after an applied step also the bound of the next."""
    smallest = tl.zeros([SIZE], tl.float32) + float("inf")
    for r0 in range(0, n_least, SIZE):
        r = r0 + tl.arange(0, SIZE)
        smallest = tl.minimum(smallest, tl.load(least_ptr + r, mask=r < n_least, other=float("inf")))
    least = tl.min(smallest, axis=0)
    guess = tl.load(threshold_ptr).to(tl.float32, bitcast=True) * share
    tl.store(bound_ptr, tl.maximum(guess.to(tl.int32, bitcast=True), 1), mask=applied != 0)
    return tl.where(least < float("inf"), least, 0.0)


@dataclass(frozen=True)
class BatchChoice:
    """The k N largest pre-activations of a batch, whichever rows they are in: where each row's slots are."""

    offsets_N1: Tensor  # int64; those from the last one on are void
    rows_M: Tensor  # int32
    least_N1: Tensor  # float32, the smallest positive value of each row; inf: none
    threshold: Tensor  # int32 key of the smallest score chosen; 0 where there were fewer than slots
    bound: Tensor  # int32 key that the next batch's candidates must reach
    room: int
    guesses: bool  # whether `bound` is tried
    waits: bool = False  # whether the host sees to it that there is room

    @staticmethod
    def make(
        n_rows: int, n_features: int, k: int, element_size: int, chunk_bytes: int, device: torch.device
    ) -> "BatchChoice":
        """Before the first batch: its bound is that of all positive scores."""

        def whole(n: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.ones(n, dtype=dtype, device=device)

        return BatchChoice(
            *(whole(n_rows + 1, torch.int64), whole(n_rows * k), whole(n_rows + 1).float(), whole(1), whole(1)),
            room=min(n_rows * n_features, (ROOM if n_features > 36 * k else ROOM_OF_MANY) * n_rows * k + BLOCK),
            guesses=chunk_rows(n_rows, n_features, element_size, chunk_bytes) < n_rows,
        )

    def exact(self) -> "BatchChoice":
        """The same, without a guess and with as much room as it takes; waits."""
        return replace(self, guesses=False, waits=True)

    def prime(self, share: float) -> None:
        """Take a share of the threshold that was just found for the bound."""
        self.bound.copy_((self.threshold.view(torch.float32) * share).view(torch.int32).clamp(min=1))

    def run(
        self,
        x_ND: Tensor,
        W_FD: Tensor,
        b_F: Tensor,
        slots: tuple[Tensor, Tensor, Tensor],
        workspace: Workspace,
        chunk_bytes: int,
        flag: Tensor,
    ) -> None:
        """Write values, indices and sort keys of the slots; raise the flag where they are not those of the largest."""
        values_M, indices_M, keys_M = slots
        F, M = len(W_FD), len(values_M)

        def chosen(room: int, bound: Tensor | None) -> Kept:
            out = values_M, indices_M
            return select(x_ND, W_FD, b_F, M, None, workspace, room=room, bound=bound, chunk_bytes=chunk_bytes, out=out)

        kept = chosen(self.room, self.bound if self.guesses else None)
        if not self.waits:
            flag.logical_or_(kept.flag)
        elif kept.flag and x_ND.isfinite().all():  # a batch that is not finite is refused whatever is chosen
            kept = chosen(int(kept.n_candidates), None)
        self.threshold.copy_(kept.threshold)
        self.offsets_N1.copy_(kept.offsets_N1)
        self.label(values_M, indices_M, keys_M, F)

    def label(self, values_M: Tensor, indices_M: Tensor, keys_M: Tensor, n_features: int) -> None:
        """Write each slot's row and sort key, and each row's least value."""
        N, M = len(self.offsets_N1) - 1, len(values_M)
        _label[(N + 1,)](
            self.offsets_N1, values_M, indices_M, self.rows_M, keys_M, self.least_N1, N, M, n_features,
            SIZE=128, num_warps=1,
        )  # fmt: skip
