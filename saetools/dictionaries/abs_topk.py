"""AbsTopK: each row keeps the k pre-activations of largest magnitude, with their sign.

    pre  = (x - b_dec) W_enc^T + b_enc                       [N, F]
    code = pre at the k largest |pre| of each row, 0 elsewhere
    recon = code W_dec + b_dec                                [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + aux_weight * AuxK (signed)

One feature may thus stand for a concept and its opposite. Codes are signed: a feature fires where it is not 0.

Source: Zhu, Khalili & Zhu 2025, "AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features", arXiv
2510.00404 (read: abstract and introduction). Differs from it in: everything but the choice is shared with TopK here,
and AuxK takes the dead features of largest magnitude with their sign; what they do for dead features is not known.
"""

from collections.abc import Mapping

from torch import Tensor

from saetools.dictionaries.auxiliary import standard_terms, standard_weights
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithK
from saetools.functional.selection import topk_code, topk_mask_reference


class AbsTopK(Dictionary, kind="abs_topk"):
    """AbsTopK: each row keeps the k pre-activations of largest magnitude, with their sign."""

    class Config(WithK, WithAuxK):
        """Settings of AbsTopK."""

    signed = True
    config: Config

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        values_NK, indices_NK = topk_code(self.pre(x_ND), self.config.k, signed=True)
        return SparseCode(values_NK, indices_NK, self.config.n_features)

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        pre_NF = self.pre(x_ND)
        return pre_NF * topk_mask_reference(pre_NF.abs(), self.config.k)

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        code = self.encode_chunk(x_ND, fields)
        return standard_terms(self, code, x_ND, target_ND, state, progress, signed=True)

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        return standard_weights(self.config)

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [cls.configure(n_features=40, k=4), cls.configure(n_features=24, k=24, aux_weight=0)]
