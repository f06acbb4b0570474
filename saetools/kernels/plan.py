"""What a dictionary tells the fused training step: once about itself, and for each batch about its selection."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from saetools.kernels.score import Score

Selection = Literal["per_row", "global", "per_feature"]
MULTI_TOPK = "multi_topk"


@dataclass(frozen=True)
class FusedPlan:
    """How to train a dictionary without autograd.

    Parameters are W_enc_FD, W_dec_FD, b_enc_F and b_dec_D; pre = (x - b_dec) W_enc^T + b_enc; the code is ReLU(pre)
    at what is selected. Losses by name: `main`, the mean over groups of the reconstruction errors / V; `auxiliary`,
    AuxK over the features that the batch names; "multi_topk", the reconstruction error / V of the multi_k largest;
    `code_l2`, the mean over rows of 1/2 sum value^2 / V. The step is used only if they are all that have a weight.
    """

    selection: Selection
    k: int  # kept per row (on average, for global and per-feature selection)
    main: str = "reconstruction"
    auxiliary: str | None = None
    aux_k: int = 0  # features per row in the auxiliary loss
    groups: tuple[int, ...] = ()  # ends of nested feature groups, one residual each; () is one group
    multi_k: int = 0
    code_l2: str | None = None

    @property
    def covers(self) -> frozenset[str]:
        """The names of its losses."""
        multi = MULTI_TOPK if self.multi_k else None
        return frozenset(name for name in (self.main, self.auxiliary, multi, self.code_l2) if name is not None)


@dataclass(frozen=True)
class FusedBatch:
    """What a dictionary asks of the step for one batch."""

    selection: Selection
    helped_A: Tensor  # int64: the features of the auxiliary loss
    score: Score | None = None  # what is selected by, if not pre
    budget_F: Tensor | None = None  # int64, rows that each feature takes, for per_feature
    threshold_F: Tensor | None = None  # count the pre-activations that are positive and reach it
