"""Scores by which features are chosen, where that is not the pre-activation itself."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Score:
    """`absolute`: |pre|.  `gradient`: relu(pre) * (base + beta * |<grad, W_dec>|), grad_ND aligned with the rows."""

    kind: Literal["absolute", "gradient"]
    grad_ND: Tensor | None = None
    W_dec_FD: Tensor | None = None
    beta: float = 0.0
    base: float = 1.0

    def of(self, pre_CF: Tensor, rows: slice, features: slice = slice(None)) -> Tensor:
        """The scores of some rows (and features) whose pre-activations are pre_CF."""
        if self.kind == "absolute":
            return pre_CF.abs()
        assert self.grad_ND is not None and self.W_dec_FD is not None
        effect_CF = self.grad_ND[rows] @ self.W_dec_FD[features].T
        return effect_CF.abs_().mul_(self.beta).add_(self.base).mul_(pre_CF).relu_()
