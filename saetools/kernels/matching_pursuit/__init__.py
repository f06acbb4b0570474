"""Matching pursuit: code a row by the atom that correlates most with what is left, again and again."""

from typing import Any, Literal

import torch
from torch import Tensor

from saetools.kernels.backend import Impl, bf16_units, operation, resolve
from saetools.kernels.gram import Gram, most_atoms
from saetools.kernels.matching_pursuit import reference, stock
from saetools.kernels.workspace import Workspace

Rule = Literal["signed", "nonnegative", "absolute"]
TRITON_GRAM_BYTES = 1 << 32
"""`GRAM_BYTES` of a GPU: as many atoms as a program holds correlations of."""
SCREENED_GAIN = 13
"""How many times as many steps a Gram matrix must serve before it pays, where steps are screened in bf16 (measured)."""


@operation
def matching_pursuit(
    x_ND: Tensor,
    W_FD: Tensor,
    n_steps: int,
    *,
    rule: Rule = "nonnegative",
    tolerance: float = 0.0,
    reselect: bool = True,
    gram: Gram | Literal["auto"] | None = "auto",
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """values_NK, indices_NK (int32, K = n_steps) and residual_ND.

    r_0 = x;  c = r_{t-1} W^T;  i_t = argmax of c (absolute: |c|), the lowest index of equals;  v_t = c[i_t];
    r_t = r_{t-1} - v_t W[i_t]

    Atoms (rows of W) have unit norm; then ||r_t||^2 = ||r_{t-1}||^2 - v_t^2. A row stops when ||r|| <= tolerance, or,
    but for the signed rule, when no score is positive; its slots left over are value 0, index 0. With `reselect` an
    atom may hold several slots of a row. `gram`: G = W W^T of the same W to update correlations by, c -= v G[i];
    "auto" builds it where it pays and fits (F < N * K, or N * K / 13 where steps can be screened; at most 1 GiB, on a
    GPU 4); None computes correlations anew: with bf16 units of a CPU by bf16 products, choices certified in float32
    (`screened.py`). ValueError for no atoms, for more steps than atoms without `reselect`, for a G of other atoms.

    Differentiable in x and W through values and residual, choices held fixed: the pursuit is run backwards, so memory
    is O(N D + N K), not O(N K F). Source: Costa et al. 2025 (arXiv 2506.03093); the signed rule is that of
    overcomplete, the absolute one that of ITDA (arXiv 2505.17769); the reversal is our own.
    """
    if rule not in ("signed", "nonnegative", "absolute"):
        raise ValueError(f"rule is {rule!r}; known: signed, nonnegative, absolute")
    if n_steps < 0 or tolerance < 0:
        raise ValueError(f"n_steps is {n_steps} and tolerance {tolerance}; neither can be negative")
    if n_steps > 0 and len(W_FD) == 0:
        raise ValueError(f"n_steps is {n_steps}, but there are no atoms to select")
    if not reselect and n_steps > len(W_FD):
        raise ValueError(f"n_steps is {n_steps}, but there are only {len(W_FD)} atoms to select once each")
    chosen = resolve(impl, x_ND, W_FD, triton=x_ND.dtype == torch.float32)
    if chosen == "reference":
        return reference.matching_pursuit(x_ND, W_FD, n_steps, rule, tolerance, reselect)
    buffer = None
    if isinstance(gram, Gram):
        gram.check(W_FD)
        buffer = gram.buffer if chosen == "numba" else gram.matrix()
    elif gram == "auto" and _gram_pays(len(x_ND) * n_steps, len(W_FD), chosen):
        space = (workspace or Workspace()).get("pursuit.gram", (len(W_FD), len(W_FD)), W_FD.dtype, W_FD.device)
        buffer = torch.mm(W_FD.detach(), W_FD.detach().T, out=space)
    options = (buffer, n_steps, rule, tolerance, reselect, workspace or Workspace(), chosen)
    return _MatchingPursuit.apply(x_ND, W_FD, *options)


def _gram_pays(n_row_steps: int, n_atoms: int, chosen: str) -> bool:
    gain = SCREENED_GAIN if chosen == "numba" and bf16_units() else 1
    return gain * n_atoms < n_row_steps and n_atoms <= most_atoms(TRITON_GRAM_BYTES if chosen == "triton" else None)


class _MatchingPursuit(torch.autograd.Function):
    """The pursuit, and its way back by reversal."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, W_FD: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
        x_ND, W_FD = x_ND.contiguous(), W_FD.contiguous()
        if options[-1] == "numba":
            from saetools.kernels.matching_pursuit import cpu

            values, indices, residual = cpu.matching_pursuit(x_ND, W_FD, *options[:-1])
        elif options[-1] == "triton":
            from saetools.kernels.matching_pursuit import triton

            values, indices, residual = triton.matching_pursuit(x_ND, W_FD, *options[:-1])
        else:
            values, indices, residual = stock.matching_pursuit(x_ND, W_FD, *options[:-1])
        ctx.save_for_backward(values, indices, residual, W_FD)
        ctx.chosen = options[-1]
        ctx.mark_non_differentiable(indices)
        return values, indices, residual

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dvalues: Tensor, _: Any, dresidual: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, residual, W_FD = ctx.saved_tensors
        backward = stock.backward
        if ctx.chosen == "numba":
            from saetools.kernels.matching_pursuit import cpu

            backward = cpu.backward
        elif ctx.chosen == "triton":
            from saetools.kernels.matching_pursuit import triton

            backward = triton.backward
        dx, dW = backward(residual, values, indices, W_FD, dvalues.contiguous(), dresidual.contiguous())
        return dx, dW, *(None,) * 7


__all__ = ["Gram", "Rule", "matching_pursuit"]
