"""Gated: one path decides which features are active, another how much.

    gate      = (x - b_dec) W_enc^T + b_enc                                        [N, F]
    magnitude = ReLU(exp(log_gain) * ((x - b_dec) W_enc^T) + b_magnitude)          [N, F]
    code  = magnitude where gate > 0, 0 elsewhere
    recon = code W_dec + b_dec                                                     [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V
           + l1_weight * warmup * sum_i ReLU(gate_i) / sqrt(V)
           + ||target - (ReLU(gate) stop(W_dec) + stop(b_dec))||^2 / V             ("gate_reconstruction")
           + aux_weight * AuxK

The penalty shrinks the gate, not the magnitude. The gate's own reconstruction, through a decoder that it cannot
change, is what teaches it which features a row has.

Source: Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", arXiv 2404.16014.
Differs from it in: AuxK on gate pre-activations in place of resampling; the warm-up of the penalty.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from saetools.dictionaries.auxiliary import dense_terms, standard_weights
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithL1
from saetools.functional.linear import rectified_product
from saetools.functional.losses import power_penalty, reconstruction


class Gated(Dictionary, kind="gated"):
    """Gated: one path decides which features are active, another how much."""

    scaled_with_x = ("b_enc_F", "b_dec_D", "b_magnitude_F")

    class Config(WithL1, WithAuxK):
        """Settings of Gated."""

    config: Config

    def __init__(self, config: Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        self.log_gain_F = nn.Parameter(torch.zeros(config.n_features, dtype=torch.float32))
        self.b_magnitude_F = nn.Parameter(torch.zeros(config.n_features, dtype=torch.float32))

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        return SparseCode.from_dense(self.encode_reference(x_ND))

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        return self._gated(self.pre(x_ND))

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        gate_NF = self.pre(x_ND)
        terms = dense_terms(self, self._gated(gate_NF), x_ND, target_ND, state, progress)
        open_NF = gate_NF.relu()
        gate_residual_ND = target_ND - (rectified_product(open_NF, self.W_dec_FD.detach()) + self.b_dec_D.detach())
        losses = {
            "l1": power_penalty(open_NF, len(x_ND), self.total_variance),
            "gate_reconstruction": reconstruction(gate_residual_ND, self.total_variance),
        }
        return replace(terms, losses=terms.losses | losses)

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        weights = {"l1": self.config.l1_weight_at(progress), "gate_reconstruction": 1.0}
        return standard_weights(self.config) | weights

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [cls.configure(n_features=40, l1_weight=0.02), cls.configure(n_features=24, aux_weight=0)]

    def _gated(self, gate_NF: Tensor) -> Tensor:
        """code_NF from the gate's pre-activations, with which the magnitudes share their product."""
        magnitude_NF = (self.log_gain_F.exp() * (gate_NF - self.b_enc_F) + self.b_magnitude_F).relu()
        return magnitude_NF * (gate_NF > 0)
