"""The whole way back in one operation: gradients of a sparse code, projection, clipping, Adam, unit decoder rows."""

import torch

from saetools.kernels.backend import Impl, operation, resolve
from saetools.kernels.backward_adam import reference, stock
from saetools.kernels.backward_adam.problem import Batch, ExtraRows, Rule, Weights, check
from saetools.kernels.workspace import Workspace


@torch.no_grad()
@operation
def backward_adam(
    weights: Weights,
    first: Weights,
    second: Weights,
    batch: Batch,
    rule: Rule,
    extra: ExtraRows | None = None,
    *,
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> float:
    """Update parameters and moments in place; returns the gradient's global norm before clipping.

    dW_dec[i] = -scale * sum over the slots of i of value * pull       projected: g - <g, w> w
    dW_enc[i] = sum over the slots of i of dvalue * x,   db_enc[i] = sum of dvalue,   dvalue = -scale * dots
    db_dec    = -scale * sum over rows of pull[:, 0] - db_enc W_enc    (no [N, D] product)
    plus the extra rows; then g *= clip_norm / max(norm, clip_norm), Adam on every element (idle rows too: their
    moments decay), rows of W_dec divided by their norms.

    Where the norm is not finite, nothing is changed; the caller sees it in the result. Any value, dot or pull that
    is not finite makes it so. Source: the b_dec identity is that of openai/sparse_autoencoder; the feature-major
    fusion is our own. Tensors of `weights` and of both moments must be contiguous; ValueError otherwise, and where
    shapes do not fit.

    A process that holds a range of the features gives its rows, the code `within` that range, what others add to
    b_dec's gradient as `extra.b_dec_D`, and the sum of their `feature_squares` as `rule.elsewhere`: each then applies
    the update that one process with all features would.
    """
    tensors = [*weights, *first, *second]
    if not all(t.is_contiguous() for t in tensors):
        raise ValueError("parameters and moments are updated in place: they must be contiguous")
    if any(m.shape != p.shape for moments in (first, second) for p, m in zip(weights, moments)):
        raise ValueError("the moments must have the shapes of the parameters")
    check(weights, batch, extra)
    chosen = resolve(impl, batch.x_ND, *tensors)
    if chosen == "numba":
        from saetools.kernels.backward_adam import cpu

        return cpu.backward_adam(weights, first, second, batch, rule, extra, workspace or Workspace())
    if chosen == "triton":
        from saetools.kernels.backward_adam import triton

        return triton.backward_adam(weights, first, second, batch, rule, extra, workspace or Workspace())
    module = stock if chosen == "torch" else reference
    return module.backward_adam(weights, first, second, batch, rule, extra)


@torch.no_grad()
@operation
def feature_squares(
    weights: Weights,
    batch: Batch,
    extra: ExtraRows | None = None,
    *,
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> float:
    """Sum of the squares of the gradients of W_enc, W_dec (projected) and b_enc: these features' part of the norm."""
    check(weights, batch, extra)
    chosen = resolve(impl, batch.x_ND, *weights)
    if chosen == "numba":
        from saetools.kernels.backward_adam import cpu

        return cpu.feature_squares(weights, batch, extra, workspace or Workspace())
    if chosen == "triton":
        from saetools.kernels.backward_adam import triton

        return triton.feature_squares(weights, batch, extra, workspace or Workspace())
    return stock.feature_squares(weights, batch, extra)


@torch.no_grad()
@operation
def gradients(
    weights: Weights,
    batch: Batch,
    extra: ExtraRows | None = None,
    *,
    workspace: Workspace | None = None,
    impl: Impl = "auto",
) -> Weights:
    """The gradient of each parameter, neither projected nor clipped: for other optimizers, and to be compared."""
    check(weights, batch, extra)
    if resolve(impl, batch.x_ND, *weights) == "triton":
        from saetools.kernels.backward_adam import triton

        return triton.gradients(weights, batch, extra, workspace or Workspace())
    return stock.gradients(weights, batch, extra)


__all__ = ["Batch", "ExtraRows", "Rule", "Weights", "backward_adam", "feature_squares", "gradients"]
