"""What `backward_adam` is given: the batch's code and residuals, extra gradient rows, and the rule of the update."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.kernels.sparse import Sparse

BETAS = (0.9, 0.999)
EPS = 6.25e-10
"""As in Gao et al. 2024 (arXiv 2406.04093), appendix A.3; torch's default 1e-8 is not small beside their gradients."""


@dataclass(frozen=True)
class Weights:
    """One tensor per parameter: the parameters themselves, a moment of Adam, or a gradient."""

    W_enc_FD: Tensor
    W_dec_FD: Tensor
    b_enc_F: Tensor
    b_dec_D: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.W_enc_FD, self.W_dec_FD, self.b_enc_F, self.b_dec_D))


@dataclass(frozen=True)
class Batch:
    """The forward pass of L = scale / 2 * sum of weight * ||residual||^2 (rows, groups) + shrink / 2 * sum of value^2.

    x_ND: rows less b_dec, as the encoder saw them; the rest as `decode_loss` takes and gives it.
    dL/dvalue = -scale * dots + shrink * value, and each value depends on its own row of W_enc, b_enc and x alone.
    """

    x_ND: Tensor
    code: Sparse
    pull_NGD: Tensor
    dots_M: Tensor
    scale: float
    group_M: Tensor | None = None
    shrink: float = 0.0

    def groups(self) -> Tensor:
        """The group of each slot, uint8."""
        if self.group_M is None:
            return torch.zeros(len(self.dots_M), dtype=torch.uint8, device=self.dots_M.device)
        return self.group_M

    def dvalues(self) -> Tensor:
        """dL/dvalue of each slot."""
        return -self.scale * self.dots_M + self.shrink * self.code.values_M

    def pull_rows(self) -> Tensor:
        """For each slot the row of pull viewed as [N * G, D]: that of its own row and group."""
        return self.code.rows() * self.pull_NGD.shape[1] + self.groups().long()


@dataclass(frozen=True)
class ExtraRows:
    """Gradient rows of another loss, added before projection and clipping (AuxK)."""

    features_A: Tensor  # int64, distinct
    W_enc_AD: Tensor
    W_dec_AD: Tensor
    b_enc_A: Tensor
    b_dec_D: Tensor


def check(weights: Weights, batch: Batch, extra: ExtraRows | None) -> None:
    """ValueError where shapes do not fit: compiled loops would read, and write, beyond the shorter."""
    (F, D), N, pull = weights.W_enc_FD.shape, len(batch.x_ND), batch.pull_NGD
    batch.code.check(batch.x_ND, batch.dots_M, *([] if batch.group_M is None else [batch.group_M]))
    expected = [(weights.W_dec_FD, (F, D)), (weights.b_enc_F, (F,)), (weights.b_dec_D, (D,))]
    expected += [(batch.x_ND, (N, D)), (pull, (N, pull.shape[1], D))]
    if extra is not None:
        A = len(extra.features_A)
        expected += [(extra.W_enc_AD, (A, D)), (extra.W_dec_AD, (A, D)), (extra.b_enc_A, (A,)), (extra.b_dec_D, (D,))]
    for tensor, shape in expected:
        if tensor.shape != shape:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} where {shape} fits W_enc {(F, D)} and {N} rows")


@dataclass(frozen=True)
class Rule:
    """Clipping to a global norm, then Adam (Kingma & Ba 2015) as its `n_steps + 1`-th update."""

    lr: float
    n_steps: int
    clip_norm: float = 1.0
    betas: tuple[float, float] = BETAS
    eps: float = EPS
    elsewhere: float = 0.0  # sum of squares of the gradients of features that another process holds

    def clip(self, norm: float) -> float:
        """The factor on a gradient of this norm; an infinite `clip_norm` clips nothing."""
        return 1.0 if norm <= self.clip_norm else self.clip_norm / norm

    def step_size(self) -> float:
        """lr / (1 - b1^t)."""
        return self.lr / (1 - self.betas[0] ** (self.n_steps + 1))

    def correction(self) -> float:
        """1 / sqrt(1 - b2^t), the factor on sqrt(v)."""
        return (1 - self.betas[1] ** (self.n_steps + 1)) ** -0.5
