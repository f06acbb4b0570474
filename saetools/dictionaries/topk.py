"""TopK: each row keeps its k largest pre-activations.

    pre  = (x - b_dec) W_enc^T + b_enc          [N, F]
    code = ReLU(pre) at the k largest of each row, 0 elsewhere
    recon = code W_dec + b_dec                   [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + aux_weight * AuxK

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093, sections 2.3-2.4 and
appendix A.2 (AuxK). Differs from it in: V is the total variance of the calibration rows (theirs: of a sample, per
element); AuxK decodes without bias, is normalised by the residual's variance in the batch and is scaled by
min(n_dead / k_aux, 1); a feature fires when its value is not 0 (theirs: above 1e-3); ties go to the lowest index.
"""

from collections.abc import Mapping

from torch import Tensor

from saetools.dictionaries.auxiliary import dead_features_loss
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithK
from saetools.functional.losses import reconstruction
from saetools.functional.selection import topk_code, topk_mask_reference
from saetools.kernels.plan import FusedPlan


class TopK(Dictionary, kind="topk"):
    """TopK: each row keeps its k largest pre-activations."""

    class Config(WithK, WithAuxK):
        """Settings of TopK."""

    config: Config

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        return self._select(self.pre(x_ND))

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        pre_NF = self.pre(x_ND)
        return pre_NF.relu() * topk_mask_reference(pre_NF, self.config.k)

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        code = self._select(self.pre(x_ND))
        residual_ND = target_ND - self.decode(code)
        losses = {"reconstruction": reconstruction(residual_ND, self.total_variance)}
        if self.config.aux_weight:
            k_aux = self.config.k_aux_for(self.d_model)
            losses["auxk"] = dead_features_loss(self, x_ND, residual_ND, state, progress, k_aux)
        return Terms(code, residual_ND, losses, state.after(code))

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        weights = {"reconstruction": 1.0}
        return weights | {"auxk": self.config.aux_weight} if self.config.aux_weight else weights

    def fused_plan(self) -> FusedPlan:
        aux_k = self.config.k_aux_for(self.d_model) if self.config.aux_weight else 0
        covers = {"reconstruction", "auxk"} if aux_k else {"reconstruction"}
        return FusedPlan("per_row", self.config.k, covers=frozenset(covers), aux_k=aux_k)

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=40, k=4),
            cls.configure(n_features=24, k=24, aux_weight=0.0),
            cls.configure(n_features=64, k=1, k_aux=5),
        ]

    def _select(self, pre_NF: Tensor) -> SparseCode:
        values_NK, indices_NK = topk_code(pre_NF, self.config.k)
        return SparseCode(values_NK, indices_NK, self.config.n_features)
