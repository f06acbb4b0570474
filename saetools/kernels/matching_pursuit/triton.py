"""Matching pursuit on the GPU: correlations held in registers, or computed anew with the argmax inside the product.

With a Gram matrix a program holds the F correlations of one row; a step takes their maximum and subtracts v times a row
of G, which streams through. Beyond `MAX_ATOMS` correlations, or where the matrix does not pay, each step is a product
whose tiles leave only their best score per row, and a small kernel that takes the best of these: no [N, F] tensor is
written. The way back runs the pursuit in reverse, row by row; what a step adds to the gradient of its atom is summed in
the order of rows, without floating-point atomics. A fixed number of launches for a number of steps; nothing waits for
the device. Source: our own; the reversal as in `stock.backward`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saetools.kernels.by_feature.triton import sort_slots
from saetools.kernels.decode.triton import gather_sum
from saetools.kernels.encode_topk.triton import CHUNK_BYTES, chunk_rows
from saetools.kernels.sparse import Sparse
from saetools.kernels.triton_parts import INTERPRETED, next_power
from saetools.kernels.workspace import Workspace

MAX_ATOMS = 32_768
"""Correlations of a row that one program holds in registers."""
TILE = (32, 32, 32) if INTERPRETED else (64, 128, 32)
"""Rows, atoms and columns of a product's tile."""


@triton.jit
def _pursue(
    c_ptr, gram_ptr, energy_ptr, value_ptr, index_ptr, F, stride, n_steps, tolerance,
    WIDTH: tl.constexpr, ABSOLUTE: tl.constexpr, SIGNED: tl.constexpr, RESELECT: tl.constexpr,
):  # fmt: skip
    """All steps of one row from its correlations with every atom."""
    row = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, WIDTH)
    inside = f < F
    c = tl.load(c_ptr + row * F + f, mask=inside, other=float("-inf") if SIGNED else 0.0)  # never chosen
    energy = tl.load(energy_ptr + row)
    going = energy > tolerance * tolerance
    for t in range(n_steps):
        score = tl.abs(c) if ABSOLUTE else c
        if not RESELECT:
            score = tl.where(score == float("inf"), float("-inf"), score)  # taken: below
        best = tl.max(score, axis=0)
        i = tl.min(tl.where(score == best, f, WIDTH), axis=0)  # half the registers of a maximum with its index
        going = going & (energy > tolerance * tolerance)
        if not SIGNED:
            going = going & (best > 0)
        v = tl.sum(tl.where(f == i, c, 0.0), axis=0) if ABSOLUTE else best
        v = tl.where(going, v, 0.0)
        i = tl.where(going, i, 0)
        g_ptr = gram_ptr + i.to(tl.int64) * stride
        c -= v * tl.load(g_ptr + f, mask=inside, other=0.0).to(tl.float32)
        if not RESELECT:
            c = tl.where(f == tl.where(going, i, -1), float("inf"), c)
        energy -= v * v * (2.0 - tl.load(g_ptr + i).to(tl.float32))
        tl.store(value_ptr + row * n_steps + t, v)
        tl.store(index_ptr + row * n_steps + t, i)


@triton.jit
def _best_of_tile(
    r_ptr, w_ptr, index_ptr, score_ptr, place_ptr, N, F, D, n_steps, t,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ABSOLUTE: tl.constexpr, RESELECT: tl.constexpr,
):  # fmt: skip
    """The best score of each row among the atoms of a tile, and its atom."""
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    f = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for d0 in range(0, D, BK):
        d = d0 + k
        r_at, w_at = n[:, None].to(tl.int64) * D + d[None, :], f[:, None].to(tl.int64) * D + d[None, :]
        r = tl.load(r_ptr + r_at, mask=(n < N)[:, None] & (d < D)[None, :], other=0.0)
        w = tl.load(w_ptr + w_at, mask=(f < F)[:, None] & (d < D)[None, :], other=0.0)
        acc = tl.dot(r, w.T, acc, input_precision="tf32x3")
    score = tl.abs(acc) if ABSOLUTE else acc
    score = tl.where((f < F)[None, :], score, float("-inf"))
    if not RESELECT:
        for u in range(t):
            taken = tl.load(index_ptr + n.to(tl.int64) * n_steps + u, mask=n < N, other=0)
            score = tl.where(f[None, :] == taken[:, None], float("-inf"), score)
    best, place = tl.max(score, axis=1, return_indices=True)
    out = n.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(score_ptr + out, best, mask=n < N)
    tl.store(place_ptr + out, tl.program_id(1) * BN + place, mask=n < N)


@triton.jit
def _take(
    r_ptr, w_ptr, score_ptr, place_ptr, n_tiles, going_ptr, value_ptr, index_ptr, D, n_steps, t, tolerance,
    TILES: tl.constexpr, WIDTH: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    """One step of one row: the best atom of all tiles, its value, and what is left."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, TILES)
    score = tl.load(score_ptr + row * n_tiles + j, mask=j < n_tiles, other=float("-inf"))
    best, tile = tl.max(score, axis=0, return_indices=True)
    d = tl.arange(0, WIDTH)
    r = tl.load(r_ptr + row * D + d, mask=d < D, other=0.0)
    going = (tl.load(going_ptr + row) != 0) & (tl.sum(r * r, axis=0) > tolerance * tolerance)
    if not SIGNED:
        going = going & (best > 0)
    i = tl.where(going, tl.load(place_ptr + row * n_tiles + tile), 0)
    w = tl.load(w_ptr + i.to(tl.int64) * D + d, mask=d < tl.where(going, D, 0), other=0.0)
    v = tl.sum(r * w, axis=0)
    tl.store(r_ptr + row * D + d, r - v * w, mask=d < D)
    tl.store(going_ptr + row, going.to(tl.int32))
    tl.store(value_ptr + row * n_steps + t, v)
    tl.store(index_ptr + row * n_steps + t, i)


@triton.jit
def _reverse(
    after_ptr, lam_ptr, w_ptr, value_ptr, index_ptr, dvalue_ptr, add_ptr, key_ptr, F, D, n_steps, t,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """One step back of one row: the residual before it, lam, and what the atom's gradient gets."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    v = tl.load(value_ptr + row * n_steps + t)
    i = tl.load(index_ptr + row * n_steps + t)
    used = v != 0
    here = d < tl.where(used, D, 0)
    w = tl.load(w_ptr + i.to(tl.int64) * D + d, mask=here, other=0.0)
    lam = tl.load(lam_ptr + row * D + d, mask=here, other=0.0)
    after = tl.load(after_ptr + row * D + d, mask=here, other=0.0)
    s = tl.load(dvalue_ptr + row * n_steps + t) - tl.sum(lam * w, axis=0)
    before = after + v * w
    tl.store(add_ptr + row * D + d, s * before - v * lam, mask=here)
    tl.store(after_ptr + row * D + d, before, mask=here)
    tl.store(lam_ptr + row * D + d, lam + s * w, mask=here)
    tl.store(key_ptr + row, tl.where(used, i, F))


@triton.jit
def _add_by_atom(key_ptr, order_ptr, off_ptr, add_ptr, out_ptr, F, D, BLOCK: tl.constexpr):
    """out[atom] += the rows that chose it, in their order; one program per first of them."""
    p = tl.program_id(0)
    key = tl.load(key_ptr + p)
    if key < F:
        start, end = tl.load(off_ptr + key), tl.load(off_ptr + key + 1)
        if start == p:
            d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
            at = key.to(tl.int64) * D + d
            total = tl.load(out_ptr + at, mask=d < D, other=0.0)
            for q in range(start, end):
                row = tl.load(order_ptr + q).to(tl.int64)
                total += tl.load(add_ptr + row * D + d, mask=d < D, other=0.0)
            tl.store(out_ptr + at, total, mask=d < D)


def matching_pursuit(
    x_ND: Tensor,
    W_FD: Tensor,
    gram_FF: Tensor | None,
    n_steps: int,
    rule: str,
    tolerance: float,
    reselect: bool,
    workspace: Workspace,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    N = len(x_ND)
    values_NK = torch.zeros(N, n_steps, dtype=torch.float32, device=x_ND.device)
    indices_NK = torch.zeros(N, n_steps, dtype=torch.int32, device=x_ND.device)
    if N == 0 or n_steps == 0:
        return values_NK, indices_NK, x_ND.clone()
    options = (rule, tolerance, reselect, workspace)
    if gram_FF is None or len(W_FD) > MAX_ATOMS:
        return values_NK, indices_NK, _anew(x_ND, W_FD, values_NK, indices_NK, *options)
    _with_gram(x_ND, W_FD, gram_FF, values_NK, indices_NK, *options)
    code = Sparse.fixed(values_NK, indices_NK)
    return values_NK, indices_NK, x_ND - gather_sum(code.values_M, code.indices_M, code.offsets_N1, W_FD)


def _with_gram(
    x_ND: Tensor,
    W_FD: Tensor,
    gram_FF: Tensor,
    values_NK: Tensor,
    indices_NK: Tensor,
    rule: str,
    tolerance: float,
    reselect: bool,
    workspace: Workspace,
) -> None:
    (N, F), width = (len(x_ND), len(W_FD)), max(16, next_power(len(W_FD)))
    rows = chunk_rows(N, F, 4, CHUNK_BYTES)
    c_CF = workspace.get("pursuit.correlations", (rows, F), torch.float32, x_ND.device)
    energy_N = x_ND.square().sum(1)
    for start in range(0, N, rows):
        part = slice(start, min(start + rows, N))
        c = torch.mm(x_ND[part], W_FD.T, out=c_CF[: part.stop - start])
        _pursue[(len(c),)](
            c, gram_FF, energy_N[part], values_NK[part], indices_NK[part], F, gram_FF.stride(0), values_NK.shape[1],
            tolerance, WIDTH=width, ABSOLUTE=rule == "absolute", SIGNED=rule == "signed", RESELECT=reselect,
            num_warps=max(1, min(32, width // 512)),
        )  # fmt: skip


def _anew(
    x_ND: Tensor,
    W_FD: Tensor,
    values_NK: Tensor,
    indices_NK: Tensor,
    rule: str,
    tolerance: float,
    reselect: bool,
    workspace: Workspace,
) -> Tensor:
    """The residual; values and indices are written."""
    (N, D), F, n_steps = x_ND.shape, len(W_FD), values_NK.shape[1]
    BM, BN, BK = TILE
    grid = (triton.cdiv(N, BM), triton.cdiv(F, BN))
    score = workspace.get("pursuit.score", (N, grid[1]), torch.float32, x_ND.device)
    place = workspace.get("pursuit.place", (N, grid[1]), torch.int32, x_ND.device)
    going, left_ND = torch.ones(N, dtype=torch.int32, device=x_ND.device), x_ND.clone()
    for t in range(n_steps):
        _best_of_tile[grid](
            left_ND, W_FD, indices_NK, score, place, N, F, D, n_steps, t, BM=BM, BN=BN, BK=BK,
            ABSOLUTE=rule == "absolute", RESELECT=reselect, num_warps=4 if INTERPRETED else 8,
        )  # fmt: skip
        _take[(N,)](
            left_ND, W_FD, score, place, grid[1], going, values_NK, indices_NK, D, n_steps, t, tolerance,
            TILES=max(2, next_power(grid[1])), WIDTH=max(16, next_power(D)), SIGNED=rule == "signed",
            num_warps=max(1, min(8, next_power(D) // 512)),
        )  # fmt: skip
    return left_ND


def backward(
    residual_ND: Tensor, values_NK: Tensor, indices_NK: Tensor, W_FD: Tensor, dvalues_NK: Tensor, dresidual_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """dx_ND, dW_FD as `stock.backward`: O(N D + N K) memory."""
    (N, D), F, n_steps = residual_ND.shape, len(W_FD), values_NK.shape[1]
    after_ND, lam_ND, add_ND = residual_ND.clone(), dresidual_ND.clone(), torch.empty_like(residual_ND)
    dW_FD, keys_N = torch.zeros_like(W_FD), torch.empty(N, dtype=torch.int32, device=W_FD.device)
    block, workspace = max(16, min(512, next_power(D))), Workspace()
    for t in reversed(range(n_steps if N else 0)):
        _reverse[(N,)](
            after_ND, lam_ND, W_FD, values_NK, indices_NK, dvalues_NK, add_ND, keys_N, F, D, n_steps, t,
            WIDTH=max(16, next_power(D)), num_warps=max(1, min(8, next_power(D) // 512)),
            maxnreg=96,  # unasked the assembler of triton 3.7 spills one register at D = 768
        )  # fmt: skip
        found = sort_slots(keys_N, F, workspace)
        _add_by_atom[(N, triton.cdiv(D, block))](
            found.keys_M, found.order_M, found.offsets_F1, add_ND, dW_FD, F, D, BLOCK=block,
            num_warps=max(1, block // 256),
        )  # fmt: skip
    return lam_ND, dW_FD
