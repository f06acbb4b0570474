"""AuxK on the GPU with static shapes: the longest dead features up to a capacity, then dense products on their rows.

Nothing waits for the device: the number of dead features stays there, columns beyond it are masked. Five cuBLAS
products of N x capacity x D; selection keeps its pre-activations in registers. The gradient rows are written without
their common factor, which `Control` carries to where they are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.auxk import TRITON_CAPACITY
from saetools.kernels.backward_adam.problem import Rule
from saetools.kernels.backward_adam.triton import Control, Extra
from saetools.kernels.triton_parts import bisect, key_value, next_power, order_key, places


@triton.jit
def _keep_largest(pre_ptr, bias_ptr, n_ptr, C, K, WIDTH: tl.constexpr):
    """pre -> code in place: ReLU(pre + b) at the K largest of the first n columns of a row, 0 elsewhere."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    inside = c < C
    there = c < tl.minimum(tl.load(n_ptr), C)
    v = tl.load(pre_ptr + row * C + c, mask=inside, other=0.0).to(tl.float32)
    v += tl.load(bias_ptr + c, mask=inside, other=0.0)
    keys = tl.where(there, order_key(v), -2147483648)
    hi = tl.max(keys, axis=0)
    threshold = bisect(keys, tl.minimum(0, hi), hi, K, K)
    taken, _, _ = places(keys, threshold, K)
    v = key_value(keys)  # not held through the search; a NaN has become infinite
    code = tl.where(taken & (v > 0), v, 0.0)
    tl.store(pre_ptr + row * C + c, code.to(pre_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _mask(gradient_ptr, code_ptr, n, BLOCK: tl.constexpr):
    """Gradients of a code become 0 where the code is."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gradient_ptr + at, mask=at < n, other=0.0)
    code = tl.load(code_ptr + at, mask=at < n, other=0.0)
    tl.store(gradient_ptr + at, tl.where(code != 0, g, 0.0).to(gradient_ptr.dtype.element_ty), mask=at < n)


@triton.jit
def _scalars(
    columns_ptr, n_columns, main_ptr, error_ptr, n_ptr, k_aux, weight, N, D, aux_ptr, control_ptr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """The loss and the factor of its gradient; main: sum of ||residual||^2 over rows, error: norm of all errors."""
    square = 0.0
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        total = tl.zeros([BD], tl.float32)
        for n in range(0, n_columns, BN):
            rows = n + tl.arange(0, BN)
            both = (rows < n_columns)[:, None] & (d < D)[None, :]
            total += tl.sum(tl.load(columns_ptr + rows[:, None] * D + d[None, :], mask=both, other=0.0), axis=0)
        square += tl.sum(total * total, axis=0)
    whole = tl.load(main_ptr)
    variance = whole - square / N  # of equal rows the rounding of both
    n_dead = tl.load(n_ptr).to(tl.float32)
    factor = tl.where((variance > 1e-6 * whole) & (n_dead > 0), tl.minimum(n_dead / k_aux, 1.0) / variance, 0.0)
    error = tl.load(error_ptr)
    tl.store(aux_ptr, tl.where(factor > 0, factor * error * error, 0.0))
    tl.store(control_ptr + 6, -2.0 * factor * weight)


@triton.jit
def _row_sums(enc_ptr, dec_ptr, atom_ptr, along_ptr, enc_norm_ptr, dec_norm_ptr, D, BLOCK: tl.constexpr):
    """Of one extra row: <dW_dec, w>, ||dW_enc|| and ||dW_dec||."""
    row = tl.program_id(0).to(tl.int64)
    along = tl.zeros([BLOCK], tl.float32)
    enc_square = tl.zeros([BLOCK], tl.float32)
    dec_square = tl.zeros([BLOCK], tl.float32)
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        enc = tl.load(enc_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        dec = tl.load(dec_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        along += dec * tl.load(atom_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        enc_square += enc * enc
        dec_square += dec * dec
    tl.store(along_ptr + row, tl.sum(along, axis=0))
    tl.store(enc_norm_ptr + row, tl.sqrt(tl.sum(enc_square, axis=0)))
    tl.store(dec_norm_ptr + row, tl.sqrt(tl.sum(dec_square, axis=0)))


class DeviceAuxK:
    """Buffers and launches of AuxK for fixed shapes."""

    def __init__(
        self, n_rows: int, n_features: int, d_model: int, capacity: int, k_aux: int, weight: float,
        dtype: torch.dtype, device: torch.device,
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
        place_F = torch.full((n_features + 1,), -1, dtype=torch.int32, device=device)
        bias, *sums = (empty(C, dtype=torch.float32) for _ in range(4))
        self.extra = Extra(place_F, empty(C, D), empty(C, D), bias, empty(D), *sums)
        self.n_dead = torch.zeros((), dtype=torch.int64, device=device)
        self.numbers_C = torch.arange(C, dtype=torch.int32, device=device)
        self.n_features = n_features

    def find_dead(self, since_F: Tensor, dead_after: int) -> Tensor:
        """The list of features to help, longest dead first; beyond the dead it holds features without effect."""
        age_F = torch.where(since_F >= dead_after, since_F.clamp(max=2**31 - 1), -1).int()
        torch.sum(age_F >= 0, dim=0, out=self.n_dead)
        age_C, list_C = torch.topk(age_F, self.capacity)
        self.extra.place_F.fill_(-1)
        self.extra.place_F.index_put_((torch.where(age_C >= 0, list_C, self.n_features),), self.numbers_C)
        return list_C

    def keep_largest(self) -> None:
        """Pre-activations of the dead become their code, in place."""
        width = next_power(self.capacity)
        _keep_largest[(len(self.code_NC),)](
            self.code_NC, self.bias_C, self.n_dead, self.capacity, self.k_aux, WIDTH=width,
            num_warps=max(1, min(16, width // 512)),
        )  # fmt: skip

    def prepare(self, W_enc_FD: Tensor, b_enc_F: Tensor, W_dec_FD: Tensor, since_F: Tensor, dead_after: int) -> None:
        """The list of the dead and their rows: what needs nothing of the batch."""
        list_C = self.find_dead(since_F, dead_after)
        torch.index_select(W_enc_FD, 0, list_C, out=self.rows_enc_CD)
        torch.index_select(W_dec_FD, 0, list_C, out=self.rows_dec_CD)
        torch.index_select(b_enc_F, 0, list_C, out=self.bias_C)

    def run(
        self, x_ND: Tensor, residual_ND: Tensor, columns: Tensor, main: Tensor, control: Control, loss: Tensor
    ) -> None:
        """After `prepare`: write the loss, `extra` and control's factor. columns: partial column sums of the residual;
        main: its sum of squares."""
        (N, D), e = x_ND.shape, self.extra
        torch.mm(x_ND, self.rows_enc_CD.T, out=self.code_NC)
        self.keep_largest()
        torch.addmm(residual_ND, self.code_NC, self.rows_dec_CD, alpha=-1, out=self.error_ND)
        norm = torch.linalg.vector_norm(self.error_ND, dtype=torch.float32)
        _scalars[(1,)](
            columns, len(columns), main, norm, self.n_dead, self.k_aux, self.weight, N, D, loss, control.values,
            BN=16, BD=min(256, next_power(D)),
        )  # fmt: skip
        torch.mm(self.error_ND, self.rows_dec_CD.T, out=self.dcode_NC)
        n = self.dcode_NC.numel()
        _mask[(triton.cdiv(n, 4096),)](self.dcode_NC, self.code_NC, n, BLOCK=4096, num_warps=8)
        torch.mm(self.code_NC.T, self.error_ND, out=e.W_dec_AD)
        torch.mm(self.dcode_NC.T, x_ND, out=e.W_enc_AD)
        block = min(1024, max(16, next_power(D)))
        _row_sums[(self.capacity,)](
            e.W_enc_AD, e.W_dec_AD, self.rows_dec_CD, e.along_A, e.enc_norm_A, e.dec_norm_A, D, BLOCK=block,
            num_warps=max(1, block // 256),
        )  # fmt: skip
        torch.sum(self.dcode_NC, dim=0, dtype=torch.float32, out=e.b_enc_A)
        torch.mv(self.rows_enc_CD.T, e.b_enc_A.to(x_ND.dtype).neg(), out=e.b_dec_D)


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
    since_F = torch.zeros(F, dtype=torch.int64, device=device)
    since_F[dead_A] = torch.arange(A, 0, -1, device=device)  # the list then has the order of dead_A
    work = DeviceAuxK(N, F, D, A, k_aux, weight, x_ND.dtype, device)
    control = Control.make(Rule(0.0, 0), device)
    columns, main = residual_ND.float().sum(0, keepdim=True), residual_ND.float().square().sum()
    loss = torch.zeros((), dtype=torch.float32, device=device)
    work.prepare(W_enc_FD, b_enc_F.float(), W_dec_FD, since_F, 1)
    work.run(x_ND, residual_ND, columns, main, control, loss)
    factor, e = control.values[Control.EXTRA], work.extra
    rows = (e.W_enc_AD[:A], e.W_dec_AD[:A], e.b_enc_A[:A], e.b_dec_D)
    return loss.to(x_ND.dtype), tuple(factor.to(r.dtype) * r for r in rows)  # type: ignore[return-value]
