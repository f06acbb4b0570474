"""Orthogonal matching pursuit: as matching pursuit, but all coefficients are refitted with each new atom."""

from typing import Any, Literal

import torch
from torch import Tensor

from saetools.kernels.backend import Impl, operation, resolve
from saetools.kernels.gram import Gram, most_atoms
from saetools.kernels.matching_pursuit import Rule
from saetools.kernels.omp import reference, stock
from saetools.kernels.workspace import Workspace

CHUNK_ELEMENTS = 1 << 22
"""Atoms' elements gathered at once on the way back."""


@operation
def omp(
    x_ND: Tensor,
    W_FD: Tensor,
    n_steps: int,
    *,
    rule: Rule = "absolute",
    tolerance: float = 0.0,
    gram: Gram | Literal["auto"] | None = "auto",
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """values_NK, indices_NK (int32, K = n_steps) and residual_ND.

    i_t maximises <r_{t-1}, w_i> (absolute: its magnitude) over the atoms not yet chosen; values are the least-squares
    coefficients of x on the atoms chosen so far; r_t = x - values W_S, orthogonal to each of them. A row stops when
    ||r|| <= tolerance, no score is positive, or the atom lies in the span of the others (to 1e-6 of its squared norm);
    slots left over are value 0, index 0. Rules: absolute or nonnegative (coefficients may still be negative).

    `gram`: G = W W^T of the same W; "auto" builds it where it pays and fits (F < N * K, at most 1 GiB); None computes
    correlations anew in each step, by N K products with W in all. Half precision is computed in float32.

    Differentiable in x and W, choices held fixed: with g = dL/dvalues - W_S dL/dr and u = (W_S W_S^T)^-1 g,
    dx = dL/dr + W_S^T u and dW_S = u r^T - values (dL/dr + W_S^T u)^T. Source: Pati et al. 1993; the progressive
    Cholesky factor is Rubinstein et al. 2008 (Batch-OMP), kept here in feature space.
    """
    if rule not in ("absolute", "nonnegative"):
        raise ValueError(f"rule is {rule!r}; known: absolute, nonnegative")
    if not 0 <= n_steps <= len(W_FD):
        raise ValueError(f"n_steps is {n_steps}; it must lie in 0..{len(W_FD)}, the number of atoms")
    if W_FD.dtype in (torch.bfloat16, torch.float16):  # of which torch solves no systems, nor would they be worth much
        again: Literal["auto"] | None = None if gram is None else "auto"
        values, indices, residual = omp(
            x_ND.float(), W_FD.float(), n_steps, rule=rule, tolerance=tolerance, gram=again, impl=impl
        )
        return values.to(W_FD.dtype), indices, residual.to(W_FD.dtype)
    chosen = resolve(impl, x_ND, W_FD, triton=False)
    if chosen == "reference" or n_steps == 0:
        return reference.omp(x_ND, W_FD, n_steps, rule, tolerance)
    if gram == "auto":
        pays = len(W_FD) < len(x_ND) * n_steps and len(W_FD) <= most_atoms()
        gram = Gram(W_FD.detach()) if pays else None
    if gram is not None:
        gram.check(W_FD)
    return _OMP.apply(x_ND, W_FD, n_steps, rule, tolerance, gram, workspace or Workspace(), chosen)


class _OMP(torch.autograd.Function):
    """The pursuit and its way back, which solves one more system with the Gram matrix of the chosen atoms."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        W_FD: Tensor,
        n_steps: int,
        rule: str,
        tolerance: float,
        gram: Gram | None,
        workspace: Workspace,
        chosen: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_ND, W_FD = x_ND.contiguous(), W_FD.contiguous()
        if gram is None:
            values, indices = stock.omp(x_ND, W_FD, None, n_steps, rule, tolerance)
        elif chosen == "numba":
            from saetools.kernels.omp import cpu

            values, indices = cpu.omp(x_ND, W_FD, gram.buffer, n_steps, rule, tolerance, workspace)
        else:
            values, indices = stock.omp(x_ND, W_FD, gram.matrix(), n_steps, rule, tolerance)
        residual = x_ND.clone()
        for rows in _chunks(len(x_ND), n_steps * W_FD.shape[1]):
            residual[rows] -= (values[rows, None] @ W_FD[indices[rows].long()])[:, 0]
        ctx.save_for_backward(values, indices, residual, W_FD)
        ctx.mark_non_differentiable(indices)
        return values, indices, residual

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dvalues: Tensor, _: Any, dresidual: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, residual, W_FD = ctx.saved_tensors
        dx, dW = dresidual.clone(), torch.zeros_like(W_FD)
        for rows in _chunks(len(values), values.shape[1] * W_FD.shape[1]):
            used = values[rows] != 0
            atoms = W_FD[indices[rows].long()] * used[:, :, None]
            gram = atoms @ atoms.mT + torch.diag_embed((~used).to(W_FD.dtype))
            g = dvalues[rows] * used - (atoms @ dresidual[rows, :, None])[:, :, 0]
            u, _ = torch.linalg.solve_ex(gram, g[:, :, None])  # rows that are not finite raise no error
            dx[rows] += (u.mT @ atoms)[:, 0]
            datoms = u @ residual[rows, None] - values[rows, :, None] @ dx[rows, None]
            dW.index_add_(0, indices[rows].reshape(-1).long(), (datoms * used[:, :, None]).reshape(-1, W_FD.shape[1]))
        return dx, dW, *(None,) * 6


def _chunks(n_rows: int, row_elements: int) -> list[slice]:
    chunk = max(1, CHUNK_ELEMENTS // max(row_elements, 1))
    return [slice(start, start + chunk) for start in range(0, n_rows, chunk)]


__all__ = ["omp"]
