"""What a dictionary tells the fused training step about itself."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class FusedPlan:
    """How to select, decode and update without autograd.

    The fused step is used only if `covers` names every loss term of non-zero weight. Parameters are
    W_enc_FD, W_dec_FD, b_enc_F and b_dec_D of the dictionary; pre = (x - b_dec) W_enc^T + b_enc.
    """

    selection: Literal["per_row", "global", "per_feature"]
    k: int  # kept per row (on average, for global and per-feature selection)
    covers: frozenset[str] = frozenset({"reconstruction"})
    score: Literal["value", "absolute", "gradient"] = "value"
    aux_k: int = 0  # AuxK latents per row; 0 without
    groups: tuple[int, ...] = field(default=())  # ends of nested feature groups, one residual each; () is one group
