"""Mutual choice (BatchTopK): the batch keeps its k * N largest pre-activations, whichever rows they are in.

    pre  = (x - b_dec) W_enc^T + b_enc                                    [N, F]
    code = ReLU(pre) at the k * N largest of the batch, 0 elsewhere       training
    code = pre where pre >= threshold, 0 elsewhere                        inference, never dependent on other rows
    recon = code W_dec + b_dec                                            [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + aux_weight * AuxK

The threshold is the mean, over about the last 10 training batches, of the smallest value kept, so that rows like
those of training have its L0 on average; after 300,000 tokens held-out text of the embedded host had 7 % more, rows of
training 1 % less (analysis/LOG.md). A dictionary that was never trained has threshold 0: everything positive is kept.

Source: the rule is that of Bussmann et al. 2024, "BatchTopK Sparse Autoencoders", arXiv 2412.06410, and of
the mutual choice of Ayonrinde 2024, "Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse
Autoencoders", arXiv 2411.02124; for the latter there is no public code, so that it is a reconstruction from the
abstract and reviews. Differs from Bussmann's code in: b_enc is used, AuxK as in TopK (theirs is not normalised and
does not stop the gradient of the residual), inference by the learnt threshold (theirs has none).
"""

from collections.abc import Mapping

from torch import Tensor

from saetools.dictionaries.auxiliary import standard_terms, standard_weights
from saetools.dictionaries.base import Dictionary, Progress, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithK
from saetools.dictionaries.threshold import BatchThreshold, mutual_code
from saetools.kernels.plan import FusedPlan


class MutualChoice(BatchThreshold, kind="mutual_choice", aliases=("batch_topk",)):
    """Mutual choice (BatchTopK): the batch keeps its k * N largest pre-activations."""

    class Config(WithK, WithAuxK):
        """Settings of mutual choice."""

    config: Config

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        code = mutual_code(self.pre(x_ND), self.config.k)
        return standard_terms(self, code, x_ND, target_ND, state, progress)

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        return standard_weights(self.config)

    def fused_plan(self) -> FusedPlan:
        return FusedPlan("global", self.config.k, **self.config.fused_auxiliary(self.d_model))

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [cls.configure(n_features=40, k=4), cls.configure(kind="batch_topk", n_features=24, k=2, aux_weight=0)]
