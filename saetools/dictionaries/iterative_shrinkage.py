"""Iterative shrinkage: the codes that given atoms allow, found by optimisation: what encoders are measured against.

    code  = n_steps of  z <- prox(y - step ((y W_dec - (x - b_dec)) W_dec^T))  from z = 0      functional/shrinkage.py
          -> argmin over z of 1/2 ||x - b_dec - z W_dec||^2 + weight s^2 sum_i R(z_i / s),  s = sqrt(V)          [N, F]
    recon = code W_dec + b_dec                                                                 [N, D]

Nothing is trained: `IterativeShrinkage.over(dictionary, ...)` takes the atoms and the bias of another dictionary. The
difference between its reconstruction error and that dictionary's, at equal L0, is the amortisation gap: what one pass
of an encoder costs. `weight` has no unit: at another scale of x the code is scaled, and no choice changes. With
`nonnegative` codes are those that a ReLU could give. Cost: 2 n_steps products [N, D] x [D, F].

Source: Daubechies, Defrise, De Mol 2004 (soft); Rentzeperis et al. 2023, arXiv 2301.10002 (soft, hard and
CEL0 as inference in sparse coding). Differs from them in: atoms are given, not learnt; nonnegative codes as an option.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.base import Dictionary, SparseCode
from saetools.functional.shrinkage import Penalty, proximal, shrinkage_code


class IterativeShrinkage(Dictionary, kind="iterative_shrinkage"):
    """Iterative shrinkage: the codes that given atoms allow, found by optimisation."""

    trained_by = "nothing"
    has_encoder = False
    scaled_with_x = ("b_dec_D",)

    class Config(Dictionary.Config):
        """Settings of iterative shrinkage."""

        penalty: Penalty = Field("cel0", description="R: soft (L1), hard (L0) or cel0 (its continuous relaxation)")
        weight: float = Field(0.01, gt=0, description="weight of R, for rows measured in sqrt(V): more is sparser")
        n_steps: int = Field(100, gt=0, description="proximal gradient steps per row")
        nonnegative: bool = Field(True, description="whether codes are held at or above 0")

    config: Config

    def __init__(self, config: Dictionary.Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        self.requires_grad_(False)
        self.signed = not self.config.nonnegative

    @classmethod
    def over(cls, dictionary: Dictionary, **settings: Any) -> "IterativeShrinkage":
        """A coder over the atoms of `dictionary`, for the same rows; `settings` are those of Config."""
        made = cls(cls.configure(n_features=dictionary.config.n_features, **settings), dictionary.d_model)
        made = made.to(device=dictionary.device, dtype=dictionary.W_dec_FD.dtype)
        made.W_dec_FD.copy_(dictionary.W_dec_FD.detach())
        made.b_dec_D.copy_(dictionary.b_dec_D.detach())
        made.total_variance.copy_(dictionary.total_variance)
        made.spec, made.calibration = dictionary.spec, dictionary.calibration
        return made

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        config = self.config
        code_NF = shrinkage_code(
            x_ND - self.b_dec_D, self.W_dec_FD, config.penalty, self._weight(), config.n_steps, config.nonnegative
        )
        return SparseCode.from_dense(code_NF)

    @torch.no_grad()
    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        """The same steps row by row, gradients from autograd, the step from a singular value."""
        step = 0.99 / torch.linalg.matrix_norm(self.W_dec_FD, ord=2).square()
        norms_F, code_NF = self.W_dec_FD.norm(dim=1), x_ND.new_zeros(len(x_ND), self.config.n_features)
        for x_D, code_F in zip(x_ND, code_NF, strict=True):
            y_F, t = code_F.clone(), 1.0
            for _ in range(self.config.n_steps):
                with torch.enable_grad():
                    y_F.requires_grad_()
                    error = (x_D - self.b_dec_D - y_F @ self.W_dec_FD).square().sum() / 2
                    (gradient_F,) = torch.autograd.grad(error, y_F)
                u_F = y_F.detach() - step * gradient_F
                u_F = u_F.clamp_min(0) if self.config.nonnegative else u_F
                new_F = proximal(u_F, self.config.penalty, self._weight(), step, norms_F)
                again = (y_F.detach() - new_F) @ (new_F - code_F) > 0
                before, t = t, 1.0 if again else (1 + (1 + 4 * t * t) ** 0.5) / 2
                y_F = new_F if again else new_F + (before - 1) / t * (new_F - code_F)
                code_F.copy_(new_F)
        return code_NF

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=40, weight=0.01),
            cls.configure(n_features=40, penalty="soft", weight=0.1, n_steps=20, nonnegative=False),
            cls.configure(n_features=24, penalty="hard", weight=0.02, n_steps=30),
        ]

    def _weight(self) -> float:
        """The weight in units of x: those of R(z) differ between soft, |z|, and the others, which count."""
        variance = float(self.total_variance)
        return self.config.weight * (variance**0.5 if self.config.penalty == "soft" else variance)
