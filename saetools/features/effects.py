"""What the weights alone say of each feature: effects on the logits, and similar features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.features.records import LogitEffect, TokenWeight

LOGIT_BINS = 40
BLOCK_BYTES = 64 << 20
TokenTexts = Callable[[Sequence[int]], list[str]]

LOGITS_FOLDED = (
    "W_U (w * W_dec row): the final norm's weight w is folded in; its centring, its division by the norm of the "
    "residual stream and all later layers are left out."
)
LOGITS_PLAIN = "W_U W_dec row: the host has no final norm weight; all later layers are left out."


@dataclass(frozen=True)
class LogitEffects:
    """The direct path of each decoder row to the logits, per unit of code."""

    top_values_FJ: Tensor
    top_tokens_FJ: Tensor
    bottom_values_FJ: Tensor  # most negative first
    bottom_tokens_FJ: Tensor
    counts_FB: Tensor  # int64: the vocabulary in equal bins between the row's least and greatest effect

    def record(self, feature: int, text_of: dict[int, str]) -> LogitEffect:
        """One feature's effect with its tokens as text."""

        def named(values_FJ: Tensor, tokens_FJ: Tensor) -> tuple[TokenWeight, ...]:
            pairs = zip(tokens_FJ[feature].tolist(), values_FJ[feature].tolist(), strict=True)
            return tuple(TokenWeight(token=text_of[token], weight=weight) for token, weight in pairs)

        return LogitEffect(
            top=named(self.top_values_FJ, self.top_tokens_FJ),
            bottom=named(self.bottom_values_FJ, self.bottom_tokens_FJ),
            low=float(self.bottom_values_FJ[feature, 0]),
            high=float(self.top_values_FJ[feature, 0]),
            counts=tuple(self.counts_FB[feature].tolist()),
        )

    def texts(self, token_texts: TokenTexts) -> dict[int, str]:
        """The text of every token that `record` names; its number where it has none of its own.

        Vocabularies are padded with rows that stand for nothing, and many tokens are a part of a character.
        """
        tokens = torch.unique(torch.cat([self.top_tokens_FJ.flatten(), self.bottom_tokens_FJ.flatten()])).tolist()
        texts = {token: token_texts([token])[0] for token in tokens}
        return {token: text if text.strip("\ufffd") else f"<token {token}>" for token, text in texts.items()}


@torch.no_grad()
def logit_effects(W_dec_FD: Tensor, W_U_VD: Tensor, norm_weight_D: Tensor | None, n_tokens: int = 10) -> LogitEffects:
    """effect_FV = (W_dec * w) W_U^T with its `n_tokens` greatest and least entries per row and a histogram.

    w is the final norm's weight, or 1 where the host has none. Units: logits per unit of code, before the final
    norm's division. Blockwise: 64 MiB at a time.
    """
    folded_FD = W_dec_FD.float() if norm_weight_D is None else W_dec_FD.float() * norm_weight_D.float()
    n_tokens = min(n_tokens, W_U_VD.shape[0])
    parts = []
    for rows in folded_FD.split(max(1, BLOCK_BYTES // (4 * W_U_VD.shape[0]))):
        effect_RV = rows @ W_U_VD.float().T
        top, bottom = effect_RV.topk(n_tokens), effect_RV.topk(n_tokens, largest=False)
        low, high = bottom.values[:, :1], top.values[:, :1]
        place_RV = ((effect_RV - low) / (high - low).clamp_min(1e-30) * LOGIT_BINS).long().clamp_(0, LOGIT_BINS - 1)
        counts_RB = torch.zeros(len(rows), LOGIT_BINS, dtype=torch.int64, device=rows.device)
        counts_RB.scatter_add_(1, place_RV, torch.ones_like(place_RV))
        parts.append((top.values, top.indices, bottom.values, bottom.indices, counts_RB))
    return LogitEffects(*(torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True)))


@torch.no_grad()
def cosine_neighbours(rows_FD: Tensor, n_neighbours: int = 20) -> tuple[Tensor, Tensor]:
    """(cosine_FJ, feature_FJ): for each row the rows of greatest cosine with it, itself left out, greatest first.

    J = min(n_neighbours, F - 1); a zero row has cosine 0 with all. O(F^2 D), blockwise.
    """
    unit_FD = torch.nn.functional.normalize(rows_FD.float(), dim=1)
    n_features = len(unit_FD)
    n_neighbours = min(n_neighbours, n_features - 1)
    values, indices = [], []
    for start in range(0, n_features, block := max(1, BLOCK_BYTES // (4 * n_features))):
        cosine_RF = unit_FD[start : start + block] @ unit_FD.T
        own = torch.arange(len(cosine_RF), device=cosine_RF.device)
        cosine_RF[own, start + own] = -torch.inf
        best = cosine_RF.topk(n_neighbours)
        values.append(best.values.clamp(-1, 1).cpu())
        indices.append(best.indices.cpu())
    return torch.cat(values), torch.cat(indices)
