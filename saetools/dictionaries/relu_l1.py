"""ReLU with an L1 penalty: the first sparse autoencoders of language models.

    pre  = (x - b_dec) W_enc^T + b_enc                  [N, F]
    code = ReLU(pre)
    recon = code W_dec + b_dec                           [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + l1_weight * warmup * sum_i code_i / sqrt(V) + aux_weight * AuxK

Both terms are free of units, so that l1_weight does not depend on the scale of x. Constants published for
E||x||^2 = 1 (where V is nearly 1) hold as they are; for ||x - recon||^2 + lambda sum_i code_i on rows with
E||x||^2 = D, l1_weight = lambda / sqrt(D).

Source: Bricken et al. 2023, "Towards Monosemanticity"; Cunningham et al. 2023, arXiv 2309.08600. Differs from them
in: the warm-up of the penalty (Anthropic, "Update on how we train SAEs", April 2024); AuxK in place of resampling;
no b_dec shared with a resampled centre: it starts at the geometric median.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from saetools.dictionaries.auxiliary import dense_terms, standard_weights
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithL1
from saetools.functional.losses import power_penalty


class ReluL1(Dictionary, kind="relu_l1"):
    """ReLU with an L1 penalty: the first sparse autoencoders of language models."""

    class Config(WithL1, WithAuxK):
        """Settings of ReLU with L1."""

    config: Config

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        return SparseCode.from_dense(self.encode_reference(x_ND))

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.pre(x_ND).relu()

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        code_NF = self.encode_reference(x_ND)
        terms = dense_terms(self, code_NF, x_ND, target_ND, state, progress)
        l1 = power_penalty(code_NF, len(x_ND), self.total_variance)
        return replace(terms, losses=terms.losses | {"l1": l1})

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        return standard_weights(self.config) | {"l1": self.config.l1_weight_at(progress)}

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [cls.configure(n_features=40, l1_weight=0.02), cls.configure(n_features=24, aux_weight=0)]
