"""AuxK on the GPU with static shapes: the dead features up to a capacity, then dense products on their rows.

Nothing waits for the device: the number of dead features stays there, and no column beyond it is chosen. Five cuBLAS
products of N x capacity x D, beside which the sums are made that need no more than they do. The gradient rows are
written without their common factor, which `Control` carries to where they are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.auxk import TRITON_CAPACITY
from saetools.kernels.backward_adam.problem import Rule
from saetools.kernels.backward_adam.triton import Control, Extra
from saetools.kernels.branch import Branch
from saetools.kernels.decode_loss.dense import write_dense
from saetools.kernels.encode_topk.triton import group_size, scratch_columns, select
from saetools.kernels.triton_parts import next_power

TAKEN_ABOVE = 320
"""Columns of dead features by D for each feature, above which their pre-activations are taken from those of all: on an
H200 dead columns that lie scattered are read at 2.4 TB/s, which costs what 320 F multiplications do."""


@triton.jit
def _list_dead(
    since_ptr, b_ptr, age_ptr, list_ptr, bias_ptr, place_ptr, n_ptr, dead_after, F, C, BLOCK: tl.constexpr,
    CUT: tl.constexpr, TAKEN: tl.constexpr,
):  # fmt: skip
    """The first C dead features in order, their biases (TAKEN: 0) and the place of each (-1: none), how many are dead;
    CUT: of more than C those dead for longest, which reach an age. Beyond them the list holds feature 0 with a bias by
    which it is never chosen."""
    n_dead = 0
    n_listed = 0
    n_equal = 0
    least = dead_after
    room = C
    if CUT:
        least = tl.maximum(tl.load(age_ptr), dead_after)
        for f0 in range(0, F, BLOCK):
            f = f0 + tl.arange(0, BLOCK)
            room -= tl.sum((tl.load(since_ptr + f, mask=f < F, other=-1) > least).to(tl.int32), axis=0)
    for f0 in range(0, F, BLOCK):
        f = f0 + tl.arange(0, BLOCK)
        since = tl.load(since_ptr + f, mask=f < F, other=-1)
        n_dead += tl.sum((since >= dead_after).to(tl.int32), axis=0)
        taken = since >= least
        if CUT:  # of that age the first
            equal = (since == least).to(tl.int32)
            taken = (since > least) | ((equal > 0) & (n_equal + tl.cumsum(equal, 0) <= room))
            n_equal += tl.sum(equal, axis=0)
        ones = taken.to(tl.int32)
        place = n_listed + tl.cumsum(ones, 0) - 1
        n_listed += tl.sum(ones, axis=0)
        taken = taken & (place < C)
        tl.store(place_ptr + f, tl.where(taken, place, -1), mask=f < F)
        tl.store(list_ptr + place, f, mask=taken)
        tl.store(bias_ptr + place, tl.load(b_ptr + f, mask=taken & (not TAKEN), other=0.0), mask=taken)
    for c0 in range(0, C, BLOCK):
        c = c0 + tl.arange(0, BLOCK)
        beyond = (c >= n_listed) & (c < C)
        tl.store(list_ptr + c, tl.zeros([BLOCK], tl.int32), mask=beyond)
        tl.store(bias_ptr + c, tl.zeros([BLOCK], tl.float32) - float("inf"), mask=beyond)
    tl.store(n_ptr, tl.cast(n_dead, tl.int64))


@triton.jit
def _take(pre_ptr, b_ptr, list_ptr, out_ptr, F, C, BLOCK: tl.constexpr, BIASED: tl.constexpr):
    """Of a row of all pre-activations those of the listed features, with their bias."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    f = tl.load(list_ptr + c, mask=c < C, other=0)
    v = tl.load(pre_ptr + row * F + f, mask=c < C, other=0.0).to(tl.float32)
    if not BIASED:
        v += tl.load(b_ptr + f, mask=c < C, other=0.0)
    tl.store(out_ptr + row * C + c, v.to(out_ptr.dtype.element_ty), mask=c < C)


@triton.jit
def _keep_chosen(val_ptr, idx_ptr, gradient_ptr, C, K: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """Of a row of gradients those of the code that was chosen, in place; 0 elsewhere."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SLOTS)
    chosen = tl.load(val_ptr + row * K + s, mask=s < K, other=0.0) != 0
    out = gradient_ptr + row * C + tl.load(idx_ptr + row * K + s, mask=s < K, other=0)
    g = tl.load(out, mask=chosen, other=0.0)
    tl.debug_barrier()
    for c0 in range(0, C, BLOCK):
        c = c0 + tl.arange(0, BLOCK)
        tl.store(gradient_ptr + row * C + c, tl.zeros([BLOCK], gradient_ptr.dtype.element_ty), mask=c < C)
    tl.debug_barrier()
    tl.store(out, g, mask=chosen)


@triton.jit
def _scalars(shift_ptr, main_ptr, error_ptr, n_ptr, k_aux, weight, N, aux_ptr, loss_ptr, control_ptr):
    """The loss, its share of the whole, the factor of its gradient; shift: squared norm of the sum of residuals, main:
    sum of ||residual||^2 over rows, error: norm of all errors."""
    whole = tl.load(main_ptr)
    variance = whole - tl.load(shift_ptr) / N  # of equal rows the rounding of both
    n_dead = tl.load(n_ptr).to(tl.float32)
    factor = tl.where((variance > 1e-6 * whole) & (n_dead > 0), tl.minimum(n_dead / k_aux, 1.0) / variance, 0.0)
    error = tl.load(error_ptr)
    loss = tl.where(factor > 0, factor * error * error, 0.0)
    tl.store(aux_ptr, loss)
    tl.store(loss_ptr, tl.load(loss_ptr) + weight * loss)
    tl.store(control_ptr + 6, -2.0 * factor * weight)


@triton.jit
def _row_sums(rows_ptr, atom_ptr, along_ptr, norm_ptr, D, BLOCK: tl.constexpr, ALONG: tl.constexpr):
    """Of one extra row: its norm and (ALONG) <row, atom>."""
    row = tl.program_id(0).to(tl.int64)
    along = tl.zeros([BLOCK], tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        g = tl.load(rows_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        square += g * g
        if ALONG:
            along += g * tl.load(atom_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(norm_ptr + row, tl.sqrt(tl.sum(square, axis=0)))
    if ALONG:
        tl.store(along_ptr + row, tl.sum(along, axis=0))


class DeviceAuxK:
    """Buffers and launches of AuxK for fixed shapes. `encoded`: all pre-activations of the batch are made anyhow, and
    may be taken from where that is cheaper than a product."""

    def __init__(
        self, n_rows: int, n_features: int, d_model: int, capacity: int, k_aux: int, weight: float,
        dtype: torch.dtype, device: torch.device, encoded: bool = False,
    ) -> None:  # fmt: skip
        if not 1 <= capacity <= min(TRITON_CAPACITY, n_features):
            raise ValueError(
                f"capacity is {capacity}; AuxK on the GPU helps 1..{min(TRITON_CAPACITY, n_features)} features"
            )
        capacity = min(n_features, triton.cdiv(capacity, 64) * 64)  # rows of odd length slow the products down
        self.capacity, self.k_aux, self.weight = capacity, k_aux, weight

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        C, D = capacity, d_model
        self.rows_enc_CD, self.rows_dec_CD, self.bias_C = empty(C, D), empty(C, D), empty(C, dtype=torch.float32)
        self.code_NC, self.dcode_NC, self.error_ND = empty(n_rows, C), empty(n_rows, C), empty(n_rows, D)
        self.k = k = min(k_aux, next_power(C))  # a constant of the kernels: few of them serve many capacities
        self.values_NK = empty(n_rows, k, dtype=torch.float32)
        self.indices_NK, self.keys_NK = (empty(n_rows, k, dtype=torch.int32) for _ in range(2))
        self.group = group_size(k, C)
        self.max_NG = empty(n_rows, triton.cdiv(C, self.group), dtype=torch.float32)
        self.scratch = empty(n_rows, scratch_columns(k, C, self.group), dtype=torch.int32)
        place_F, self.list_C = empty(n_features, dtype=torch.int32), empty(C, dtype=torch.int32)
        bias, *sums = (empty(C, dtype=torch.float32) for _ in range(4))
        self.extra = Extra(place_F, empty(C, D), empty(C, D), bias, empty(D), *sums)
        self.n_dead = torch.zeros((), dtype=torch.int64, device=device)
        self.n_features = n_features
        self.takes = encoded and TAKEN_ABOVE * n_features < C * D  # the pre-activations that encoding has made

    def prepare(self, W_enc_FD: Tensor, b_enc_F: Tensor, W_dec_FD: Tensor, since_F: Tensor, dead_after: int) -> None:
        """The list of the dead and their rows: what needs nothing of the batch."""
        cut = self.capacity == TRITON_CAPACITY < self.n_features  # elsewhere a batch with more of them is flagged
        age = torch.topk(since_F, self.capacity).values[-1:] if cut else since_F
        _list_dead[(1,)](
            since_F, b_enc_F, age, self.list_C, self.bias_C, self.extra.place_F, self.n_dead, dead_after,
            self.n_features, self.capacity, BLOCK=min(4096, next_power(self.n_features)), CUT=cut,
            TAKEN=self.takes, num_warps=16,
        )  # fmt: skip
        torch.index_select(W_enc_FD, 0, self.list_C, out=self.rows_enc_CD)
        torch.index_select(W_dec_FD, 0, self.list_C, out=self.rows_dec_CD)

    def take(self, part: slice, pre_CF: Tensor, b_enc_F: Tensor, biased: bool) -> None:
        """Take over the pre-activations of some rows, after `prepare`."""
        code_CC = self.code_NC[part]
        _take[(len(code_CC), triton.cdiv(self.capacity, 2048))](
            pre_CF, b_enc_F, self.list_C, code_CC, self.n_features, self.capacity, BLOCK=2048, BIASED=biased
        )

    def choose(self, x_ND: Tensor) -> None:
        """The code of the dead, after `prepare` (and `take`): what needs nothing of the residual."""
        if not self.takes:
            torch.mm(x_ND, self.rows_enc_CD.T, out=self.code_NC)
        self.keep_largest()

    def keep_largest(self) -> None:
        """Pre-activations of the dead become their code, in place."""
        slots = self.values_NK, self.indices_NK, self.keys_NK
        select(self.code_NC, self.bias_C, self.max_NG, self.scratch, slots, self.k, relu=True, group=self.group)
        write_dense(self.values_NK, self.indices_NK, None, self.code_NC)

    def keep_chosen(self) -> None:
        """Of the gradients of all pre-activations those of the code, in place."""
        _keep_chosen[(len(self.dcode_NC),)](
            self.values_NK, self.indices_NK, self.dcode_NC, self.capacity, K=self.k, SLOTS=next_power(self.k),
            BLOCK=2048,
        )  # fmt: skip

    def run(
        self,
        x_ND: Tensor,
        residual_ND: Tensor,
        columns: Tensor,
        main: Tensor,
        control: Control,
        loss: Tensor,
        branch: Branch,
    ) -> None:
        """After `choose`: write the loss, `extra`, control's factor; add the weighted loss to its.
        columns: partial column sums of the residual; main: its sum of squares."""
        e = self.extra
        torch.addmm(residual_ND, self.code_NC, self.rows_dec_CD, alpha=-1, out=self.error_ND)
        known = branch.start(lambda: self._scalars(len(x_ND), columns, main, control, loss))
        torch.mm(self.code_NC.T, self.error_ND, out=e.W_dec_AD)
        summed = branch.start(lambda: self._row_sums(e.W_dec_AD, e.dec_norm_A, e.along_A))
        torch.mm(self.error_ND, self.rows_dec_CD.T, out=self.dcode_NC)
        self.keep_chosen()
        biased = branch.start(lambda: self._biases(x_ND.dtype))
        torch.mm(self.dcode_NC.T, x_ND, out=e.W_enc_AD)
        self._row_sums(e.W_enc_AD, e.enc_norm_A)
        for join in (known, summed, biased):
            join()

    def _scalars(self, n_rows: int, columns: Tensor, main: Tensor, control: Control, loss: Tensor) -> None:
        shift, norm = columns.sum(0).square().sum(), torch.linalg.vector_norm(self.error_ND, dtype=torch.float32)
        _scalars[(1,)](
            shift, main, norm, self.n_dead, self.k_aux, self.weight, n_rows, loss, control.loss, control.values,
            num_warps=1,
        )  # fmt: skip

    def _row_sums(self, rows: Tensor, norms: Tensor, along: Tensor | None = None) -> None:
        D = rows.shape[1]
        block = min(1024, max(16, next_power(D)))
        _row_sums[(self.capacity,)](
            rows, self.rows_dec_CD, norms if along is None else along, norms, D, BLOCK=block, ALONG=along is not None,
            num_warps=max(1, block // 256),
        )  # fmt: skip

    def _biases(self, dtype: torch.dtype) -> None:
        e = self.extra
        torch.sum(self.dcode_NC, dim=0, dtype=torch.float32, out=e.b_enc_A)
        torch.mv(self.rows_enc_CD.T, e.b_enc_A.to(dtype).neg(), out=e.b_dec_D)


def auxk(
    x_ND: Tensor,
    residual_ND: Tensor,
    W_enc_FD: Tensor,
    b_enc_F: Tensor,
    W_dec_FD: Tensor,
    dead_A: Tensor,
    k_aux: int,
    weight: float,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """loss and the gradients of weight * loss for the rows dead_A (at most TRITON_CAPACITY), as the reference."""
    (N, D), F, A, device = x_ND.shape, len(W_enc_FD), len(dead_A), x_ND.device
    since_F = torch.zeros(F, dtype=torch.int64, device=device).index_fill_(0, dead_A, 1)
    work = DeviceAuxK(N, F, D, A, k_aux, weight, x_ND.dtype, device)
    control = Control.make(Rule(0.0, 0), device)
    columns, main = residual_ND.float().sum(0, keepdim=True), residual_ND.float().square().sum()
    loss = torch.zeros((), dtype=torch.float32, device=device)
    work.prepare(W_enc_FD, b_enc_F.float().contiguous(), W_dec_FD, since_F, 1)
    work.choose(x_ND)
    work.run(x_ND, residual_ND, columns, main, control, loss, Branch(device))
    factor, e = control.values[Control.EXTRA], work.extra
    place_A = e.place_F[dead_A].long()
    rows = (e.W_enc_AD[place_A], e.W_dec_AD[place_A], e.b_enc_A[place_A], e.b_dec_D)
    return loss.to(x_ND.dtype), tuple(factor.to(r.dtype) * r for r in rows)  # type: ignore[return-value]
