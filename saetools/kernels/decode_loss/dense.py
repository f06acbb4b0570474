"""Decode, loss and residuals by a dense product on the GPU: where there are few features for each that is kept.

A gather moves 2 N k D bytes, a product takes 2 N F D operations: at an H200's rates (790 TFLOP/s, 4.3 to 5.4 TB/s) they
would be equal at F = 145 to 184 k, without the code that is written and read; measured, between 64 and 128 k.
The code is rounded to the atoms' dtype; sums and residuals are in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.decode_loss.triton import block_columns
from saetools.kernels.encode_topk.triton import chunk_rows
from saetools.kernels.triton_parts import row_slots
from saetools.kernels.workspace import Workspace

DENSE_UP_TO = 64
"""Features for each kept one up to which the product is taken: of 32, 64, 128 and 256 the last at which it is faster on
an H200 (D = 2,304: 1.09x, 4,096: 1.13x; at 128 0.66x; D = 768: what was timed are launches), by `gpu_suite.py`."""


@triton.jit
def _spread(val_ptr, idx_ptr, off_ptr, code_ptr, F, K: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr):
    """The dense code of one row. K = 0: a ragged code."""
    row = tl.program_id(0).to(tl.int64)
    for f0 in range(0, F, BLOCK):
        f = f0 + tl.arange(0, BLOCK)
        tl.store(code_ptr + row * F + f, tl.zeros([BLOCK], code_ptr.dtype.element_ty), mask=f < F)
    tl.debug_barrier()
    start, end = row_slots(off_ptr, row, K)
    for s0 in range(start, end, SLOTS):
        s = s0 + tl.arange(0, SLOTS)
        v = tl.load(val_ptr + s, mask=s < end, other=0.0)
        f = tl.load(idx_ptr + s, mask=s < end, other=0)
        tl.store(code_ptr + row * F + f, v.to(code_ptr.dtype.element_ty), mask=v != 0)


@triton.jit
def _residual(x_ptr, b_ptr, product_ptr, pull_ptr, loss_ptr, D, n_blocks, BLOCK: tl.constexpr):
    """x - b - product of one row and BLOCK columns, and its squared norm."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    left = tl.load(x_ptr + row * D + d, mask=inside, other=0.0).to(tl.float32)
    left -= tl.load(b_ptr + d, mask=inside, other=0.0)
    left -= tl.load(product_ptr + row * D + d, mask=inside, other=0.0)
    tl.store(loss_ptr + row * n_blocks + tl.program_id(1), tl.sum(left * left, axis=0))
    tl.store(pull_ptr + row * D + d, left.to(pull_ptr.dtype.element_ty), mask=inside)


def write_dense(values: Tensor, indices: Tensor, offsets_N1: Tensor | None, code_NF: Tensor) -> None:
    """Write the dense code of slots: [N, K], or ragged ones by their offsets."""
    K = 0 if offsets_N1 is not None else values.shape[1]
    N, F = code_NF.shape
    _spread[(N,)](values, indices, values if offsets_N1 is None else offsets_N1, code_NF, F, K=K, BLOCK=2048, SLOTS=128)


def dense_decode_loss_into(
    x_ND: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets_N1: Tensor | None,
    W_FD: Tensor,
    b_D: Tensor,
    out: tuple[Tensor, Tensor],
    workspace: Workspace,
    chunk_bytes: int,
) -> None:
    """As `decode_loss_into` with one group of weight 1; row chunks of the code in the memory of pre-activations."""
    (N, D), F, device = x_ND.shape, len(W_FD), x_ND.device
    pull_NGD, loss_NGB = out
    rows = chunk_rows(N, F, W_FD.element_size(), chunk_bytes)
    code_CF = workspace.get("encode.pre", (rows, F), W_FD.dtype, device)
    product_CD = workspace.get("decode.product", (rows, D), torch.float32, device)
    block = block_columns(D)
    for start in range(0, N, rows):
        part = slice(start, min(N, start + rows))
        n = part.stop - start
        if offsets_N1 is None:
            write_dense(values[part], indices[part], None, code_CF[:n])
        else:
            write_dense(values, indices, offsets_N1[start:], code_CF[:n])
        _product(code_CF[:n], W_FD, product_CD[:n])
        _residual[(n, triton.cdiv(D, block))](
            x_ND[part], b_D, product_CD, pull_NGD[part], loss_NGB[part], D, loss_NGB.shape[2], BLOCK=block,
            num_warps=max(1, block // 256),
        )  # fmt: skip


def _product(code_CF: Tensor, W_FD: Tensor, out: Tensor) -> None:
    """out = code W in float32."""
    if code_CF.is_cuda and code_CF.dtype != torch.float32:
        torch.mm(code_CF, W_FD, out_dtype=torch.float32, out=out)
    else:
        torch.mm(code_CF.float(), W_FD.float(), out=out)
