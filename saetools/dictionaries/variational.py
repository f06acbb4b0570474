"""Variational: TopK on a noisy code, with a Gaussian prior on it.

    pre = (x - b_dec) W_enc^T + b_enc,  mu = ReLU(pre)                          [N, F]
    z = mu                                              sample: none
    z = mu + sigma s noise                              sample: fixed, s = sqrt(V)
    z = mu + exp(logvar / 2) s noise                    sample: learned, logvar = (x - b_dec) W_var^T + b_var
    code = z at the k largest |z| of each row, with its sign; at inference z = mu
    recon = code W_dec + b_dec                           [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + beta * warmup * KL + aux_weight * AuxK
    KL   = mean over rows of 1/2 sum_i (mu_i^2 / s^2 + var_i - 1 - ln var_i), over all latents or the selected ones

var is 1 in KL unless learned (then the last three terms are not 0). Latents are measured in s = sqrt(V), so that the
prior N(0, 1) does not depend on the scale of x; with V = 1, as published, s = 1. `sample: none` is TopK with an L2
penalty on mu, the control that the method is to be judged against; with beta = 0 it is TopK, bit for bit. A latent
counts as firing where it is selected and mu > 0: noise lets every latent fire, and none would ever be dead.

Source: Baker & Li 2025, "Analysis of Variational Sparse Autoencoders", arXiv 2509.22994 (abstract), and the first
author's code. Differs from it in: the same initialisation, unit atoms, learning rate and AuxK as every kind here
(their released TopK baseline had others); the released
"fixed variance" models did not sample at all, which here is `none`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from saetools.dictionaries.auxiliary import standard_terms, standard_weights
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK, WithK, WithWarmup
from saetools.functional.linear import preactivations
from saetools.functional.losses import gaussian_kl_NF, mean_of_rows
from saetools.functional.selection import topk_code, topk_mask_reference
from saetools.kernels.plan import FusedPlan
from saetools.rng import torch_seed

LOGVAR_RANGE = (-6.0, 2.0)
LOGVAR_START = -2.0


class Variational(Dictionary, kind="variational"):
    """Variational: TopK on a noisy code, with a Gaussian prior on it."""

    class Config(WithWarmup, WithK, WithAuxK):
        """Settings of the variational dictionary."""

        sample: Literal["none", "fixed", "learned"] = Field("fixed", description="variance of the noise in training")
        sigma: float = Field(1.0, gt=0, description="standard deviation of fixed noise, in sqrt(V); 1 as published")
        kl_scope: Literal["all", "selected"] = Field("all", description="latents that KL is summed over")
        beta: float = Field(1e-3, ge=0, description="weight of KL; 1 in the released models")

    config: Config

    def __init__(self, config: Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        self.batch_coupled = config.sample != "none"  # noise belongs to the place in the batch
        if config.sample == "learned":
            self.W_var_FD = nn.Parameter(torch.zeros(config.n_features, d_model, dtype=torch.float32))
            self.b_var_F = nn.Parameter(torch.full((config.n_features,), LOGVAR_START, dtype=torch.float32))

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        values_NK, indices_NK = topk_code(self.pre(x_ND), self.config.k)
        return SparseCode(values_NK, indices_NK, self.config.n_features)

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        pre_NF = self.pre(x_ND)
        return pre_NF.relu() * topk_mask_reference(pre_NF, self.config.k)

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        pre_NF = self.pre(x_ND)
        logvar_NF = self._logvar(x_ND)
        code = self._training_code(pre_NF, logvar_NF, progress)
        terms = standard_terms(self, code, x_ND, target_ND, state, progress)
        if self.config.sample != "none":
            terms = replace(terms, new_state=self.next_state(state, self._with_a_mean(code, pre_NF)))
        if not self.config.beta:
            return terms
        kl_NF = gaussian_kl_NF(pre_NF.relu(), logvar_NF, self.total_variance)
        if self.config.kl_scope == "selected":
            kl_NF = kl_NF * (code.to_dense() != 0)
        return replace(terms, losses=terms.losses | {"kl": mean_of_rows(kl_NF.sum(1))})

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        weights = standard_weights(self.config)
        beta = self.config.beta * progress.ramp(self.config.warmup_fraction)
        return weights | {"kl": beta} if self.config.beta else weights

    def starting_recon(self, x_ND: Tensor) -> Tensor:
        return self.decode(self.encode(x_ND))  # without noise

    def fused_plan(self) -> FusedPlan | None:
        if self.config.sample != "none":
            return None
        penalty = "kl" if self.config.beta and self.config.kl_scope == "selected" else None
        return FusedPlan("per_row", self.config.k, code_l2=penalty, **self.config.fused_auxiliary(self.d_model))

    @torch.no_grad()
    def fold_scale_(self, scale: float) -> None:
        super().fold_scale_(scale)
        if self.config.sample == "learned":
            self.W_var_FD.mul_(scale)  # a log-variance has no unit: it is a function of scale * (x - b_dec / scale)

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [
            cls.configure(n_features=40, k=4, sample="none", beta=0.01),
            cls.configure(n_features=40, k=4, sample="none", beta=0.01, kl_scope="selected"),
            cls.configure(n_features=40, k=4, sample="fixed", sigma=0.1, kl_scope="selected"),
            cls.configure(n_features=24, k=6, sample="learned", aux_weight=0),
        ]

    def _logvar(self, x_ND: Tensor) -> Tensor | None:
        if self.config.sample != "learned":
            return None
        return preactivations(x_ND, self.W_var_FD, self.b_var_F, self.b_dec_D).clamp(*LOGVAR_RANGE)

    def _with_a_mean(self, code: SparseCode, pre_NF: Tensor) -> SparseCode:
        """The code without the latents that noise alone let fire: at inference they would not."""
        has_mean_NK = pre_NF.detach().gather(1, code.indices.long()) > 0
        return replace(code, values=code.values.detach() * has_mean_NK)

    def _training_code(self, pre_NF: Tensor, logvar_NF: Tensor | None, progress: Progress) -> SparseCode:
        if self.config.sample == "none":
            values_NK, indices_NK = topk_code(pre_NF, self.config.k)
        else:
            generator = torch.Generator().manual_seed(torch_seed(self.seed, "variational", progress.step))
            noise_NF = torch.randn(pre_NF.shape, generator=generator, dtype=pre_NF.dtype, device="cpu")
            sigma = self.config.sigma if logvar_NF is None else (logvar_NF / 2).exp()
            scale = self.total_variance.sqrt().to(pre_NF.dtype)
            values_NK, indices_NK = topk_code(
                pre_NF.relu() + sigma * scale * noise_NF.to(pre_NF.device), self.config.k, signed=True
            )
        return SparseCode(values_NK, indices_NK, self.config.n_features)
