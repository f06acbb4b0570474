"""TopK of rows that are normalised one by one: what OpenAI's autoencoders of GPT-2 compute.

    mean, std of each row (std with D - 1);  y = (x - mean) / (std + eps)
    pre  = (y - b_pre) W_enc^T + b_enc                                    over the first F - 2 features
    code = std * ReLU(pre) at the k - 2 largest of each row
    code of feature F - 2 = mean * sqrt(D);  of feature F - 1 = std * ||b_pre||
    recon = code W_dec = std * (code_y W_dec + b_pre) + mean              b_dec is zero

A reconstruction needs the mean and the scale of its row, and decoding must not: so two features carry them, which fire
on nearly every row. The atom of feature F - 2 is the constant direction 1 / sqrt(D), that of F - 1 b_pre / ||b_pre||.
Codes are thus in units of x, and rows need no scaling (eps aside, it changes nothing). Not trained here.

Source: Gao et al. 2024, arXiv 2406.04093, section A.1, and the model.py published with the weights.
"""

from collections.abc import Mapping
from math import sqrt

import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.base import Dictionary, SparseCode
from saetools.dictionaries.settings import WithK
from saetools.errors import ConfigError
from saetools.functional.selection import topk_code, topk_mask_reference

CARRIERS = 2
"""The last features, which carry the mean and the scale of each row."""


class NormalisedTopK(Dictionary, kind="normalised_topk"):
    """TopK of rows normalised one by one, with two more features that carry their mean and scale."""

    trained_by = "nothing"
    scaled_with_x = ("b_dec_D",)
    b_pre_D: Tensor

    class Config(WithK):
        """Settings of TopK of normalised rows; n_features and k count the two carriers."""

        eps: float = Field(1e-5, ge=0, description="added to the standard deviation that rows are divided by")

        def validate_for(self, d_model: int) -> None:
            super().validate_for(d_model)
            if d_model < 2 or self.k <= CARRIERS:
                raise ConfigError(
                    f"k = {self.k} and d_model = {d_model}: two of the k features of each row carry its mean and "
                    "scale, so k is at least 3, and d_model at least 2."
                )

    config: Config

    def __init__(self, config: Dictionary.Config, d_model: int, seed: int = 0) -> None:
        super().__init__(config, d_model, seed)
        self.requires_grad_(False)
        self.register_buffer("b_pre_D", torch.zeros(d_model, dtype=torch.float32))
        own = {"W_enc_FD": self.W_enc_FD, "W_dec_FD": self.W_dec_FD, "b_enc_F": self.b_enc_F, "b_dec_D": self.b_dec_D}
        start = with_mean_and_bias({name: t[:-CARRIERS] if "F" in name[-2:] else t for name, t in own.items()})
        for name, tensor in start.items():
            self.get_buffer(name).copy_(tensor) if name == "b_pre_D" else self.get_parameter(name).copy_(tensor)

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        pre_NG, mean_N1, std_N1 = self._pre(x_ND)
        values_NK, indices_NK = topk_code(pre_NG, self.config.k - CARRIERS)
        carried_N2 = self._carried(mean_N1, std_N1)
        places_2 = torch.arange(-CARRIERS, 0, device=x_ND.device, dtype=torch.int32) + self.config.n_features
        values = torch.cat([values_NK * std_N1, carried_N2], dim=1)
        return SparseCode(
            values, torch.cat([indices_NK, places_2.expand(len(x_ND), -1)], dim=1), self.config.n_features
        )

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        pre_NG, mean_N1, std_N1 = self._pre(x_ND)
        code_NG = pre_NG.relu() * topk_mask_reference(pre_NG, self.config.k - CARRIERS) * std_N1
        return torch.cat([code_NG, self._carried(mean_N1, std_N1)], dim=1)

    def pre(self, x_ND: Tensor) -> Tensor:
        """pre_NF of the normalised rows, in their units; zeros for the two carriers."""
        return torch.nn.functional.pad(self._pre(self._checked(x_ND))[0], (0, CARRIERS))

    @classmethod
    def examples(cls) -> list[Dictionary.Config]:
        return [cls.configure(n_features=40, k=4), cls.configure(n_features=24, k=24, eps=0.0)]

    def _pre(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pre over the features that are not carriers, mean and standard deviation of each row."""
        mean_N1 = x_ND.mean(dim=1, keepdim=True)
        std_N1 = x_ND.std(dim=1, keepdim=True)
        y_ND = torch.nan_to_num((x_ND - mean_N1) / (std_N1 + self.config.eps), nan=0.0)
        own = slice(0, self.config.n_features - CARRIERS)
        return (y_ND - self.b_pre_D) @ self.W_enc_FD[own].T + self.b_enc_F[own], mean_N1, std_N1

    def _carried(self, mean_N1: Tensor, std_N1: Tensor) -> Tensor:
        return torch.cat([mean_N1 * sqrt(self.d_model), std_N1 * self.b_pre_D.norm()], dim=1)


def with_mean_and_bias(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a TopK dictionary of normalised rows (its b_dec_D is b_pre), with the two carriers added."""
    W_enc_FD, W_dec_FD, b_pre_D = weights["W_enc_FD"], weights["W_dec_FD"], weights["b_dec_D"]
    constant_D = torch.full_like(b_pre_D, 1 / sqrt(len(b_pre_D)))
    norm = b_pre_D.norm()
    bias_D = b_pre_D / norm if norm > 0 else constant_D
    return {
        "W_enc_FD": torch.cat([W_enc_FD, W_enc_FD.new_zeros(CARRIERS, W_enc_FD.shape[1])]),
        "b_enc_F": torch.cat([weights["b_enc_F"], weights["b_enc_F"].new_zeros(CARRIERS)]),
        "W_dec_FD": torch.cat([W_dec_FD, torch.stack([constant_D, bias_D])]),
        "b_dec_D": torch.zeros_like(b_pre_D),
        "b_pre_D": b_pre_D,
    }
