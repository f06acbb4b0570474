"""Top-AFA: each row keeps as many features as make its code as long as the row itself.

    u    = x - b_dec,  active = ReLU(u W_enc^T + b_enc)                        [N, F]
    k_n  = 1 + argmin_t | sqrt(sum of the t + 1 largest active^2) - ||u|| |, less than F
    code = active at the k_n largest of row n, 0 elsewhere
    recon = code W_dec + b_dec                                                  [N, D], unit rows of W_dec
    loss = ||target - recon||^2 / V + afa_weight * D * (||code|| - ||u||)^2 / V + aux_weight * AuxK

There is no k: sparsity follows from the norm. Published weights belong to a loss that is a mean over D entries of rows
with ||x||^2 = D, whence the factor D.

Source: Lee, Davies, Canby & Hockenmaier 2025, arXiv 2503.24277, and their code. Differs from it in: the AFA
loss uses ||u||, as the selection does (their code: the norm of x with its bias); rows share one scale (theirs are
standardised one by one, which cannot be undone without their mean and variance); b_enc; AuxK as everywhere here.
Winning settings in the paper have L0 of about 2000 at D = 768, where a linear map is exact: read results with L0.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.auxiliary import standard_terms, standard_weights
from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK
from saetools.functional.afa import norm_matching_mask
from saetools.functional.losses import mean_of_rows
from saetools.functional.selection import masked_code, topk_mask_reference


class TopAFA(Dictionary, kind="top_afa"):
    """Top-AFA: each row keeps as many features as make its code as long as the row itself."""

    class Config(WithAuxK):
        """Settings of top-AFA."""

        afa_weight: float = Field(1 / 32, ge=0, description="weight of the norm mismatch (published: 1/128 to 1/16)")

    config: Config

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        active_NF = self.pre(x_ND).relu()
        kept_NF = norm_matching_mask(active_NF, (x_ND - self.b_dec_D).norm(dim=1))
        values_M, indices_M, offsets_N1 = masked_code(active_NF, kept_NF)
        return SparseCode(values_M, indices_M, self.config.n_features, offsets_N1)

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        """Row by row, k by k."""
        active_NF = self.pre(x_ND).relu()
        rows = []
        for active_F, x_D in zip(active_NF, x_ND, strict=True):
            masks = [topk_mask_reference(active_F[None], k)[0] for k in range(1, max(2, len(active_F)))]
            length = (x_D - self.b_dec_D).norm()
            gaps = torch.stack([((active_F * mask).norm() - length).abs() for mask in masks])
            rows.append(active_F * masks[int(gaps.argmin())])
        return torch.stack(rows) if rows else active_NF

    def loss_terms(
        self, x_ND: Tensor, target_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> Terms:
        code = self.encode_chunk(x_ND, fields)
        terms = standard_terms(self, code, x_ND, target_ND, state, progress)
        if not self.config.afa_weight:
            return terms
        squares_N = code.values.new_zeros(len(code)).index_add(0, code.rows(), code.values.square())
        mismatch_N = squares_N.clamp_min(torch.finfo(squares_N.dtype).tiny).sqrt() - (x_ND - self.b_dec_D).norm(dim=1)
        afa = mean_of_rows(mismatch_N.square()) / self.total_variance.to(x_ND.dtype)
        return replace(terms, losses=terms.losses | {"afa": afa})

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        weights = standard_weights(self.config)
        return weights | {"afa": self.config.afa_weight * self.d_model} if self.config.afa_weight else weights

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [cls.configure(n_features=40), cls.configure(n_features=24, afa_weight=0, aux_weight=0)]
