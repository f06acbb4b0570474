"""What `backward_adam` is given: the batch's code and residuals, extra gradient rows, and the rule of the update."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.kernels.sparse import Sparse


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
    """The forward pass of L = scale / 2 * sum over rows and groups of weight * ||residual||^2.

    x_ND: rows less b_dec, as the encoder saw them; the rest as `decode_loss` gives it. dL/dvalue = -scale * dots,
    and each value depends on its own row of W_enc, b_enc and x alone.
    """

    x_ND: Tensor
    code: Sparse
    pull_NGD: Tensor
    dots_M: Tensor
    scale: float
    ends: tuple[int, ...] = ()

    def pull_rows(self) -> Tensor:
        """For each slot the row of pull viewed as [N * G, D]: that of its own row and feature's group."""
        n_groups = self.pull_NGD.shape[1]
        rows_M = self.code.rows()
        if n_groups == 1:
            return rows_M
        ends_G = torch.tensor(self.ends, device=rows_M.device)
        return rows_M * n_groups + torch.bucketize(self.code.indices_M.long(), ends_G, right=True)


@dataclass(frozen=True)
class ExtraRows:
    """Gradient rows of another loss, added before projection and clipping (AuxK)."""

    features_A: Tensor  # int64, distinct
    W_enc_AD: Tensor
    W_dec_AD: Tensor
    b_enc_A: Tensor
    b_dec_D: Tensor


@dataclass(frozen=True)
class Rule:
    """Clipping to a global norm, then Adam (Kingma & Ba 2015) as its `n_steps + 1`-th update."""

    lr: float
    n_steps: int
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 6.25e-10

    def step_size(self) -> float:
        """lr / (1 - b1^t)."""
        return self.lr / (1 - self.betas[0] ** (self.n_steps + 1))

    def correction(self) -> float:
        """1 / sqrt(1 - b2^t), the factor on sqrt(v)."""
        return (1 - self.betas[1] ** (self.n_steps + 1)) ** -0.5
