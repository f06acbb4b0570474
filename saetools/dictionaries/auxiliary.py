"""The two terms that nearly every kind has: reconstruction and, if asked for, AuxK on its dead features."""

import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary, Progress, SparseCode, State, Terms
from saetools.dictionaries.settings import WithAuxK
from saetools.functional.linear import rectified_product
from saetools.functional.losses import auxk, reconstruction
from saetools.functional.statistics import dead_F


def standard_terms(
    dictionary: Dictionary,
    code: SparseCode,
    x_ND: Tensor,
    target_ND: Tensor,
    state: State,
    progress: Progress,
    signed: bool = False,
) -> Terms:
    """Terms of a training code: "reconstruction" and, where its weight is not 0, "auxk" (signed for signed codes)."""
    return terms_of_residual(dictionary, code, target_ND - dictionary.decode(code), x_ND, state, progress, signed)


def dense_terms(
    dictionary: Dictionary,
    code_NF: Tensor,
    x_ND: Tensor,
    target_ND: Tensor,
    state: State,
    progress: Progress,
    zeros_learn: bool = False,
) -> Terms:
    """`standard_terms` of a training code that may not be sparse yet; `zeros_learn`: gradients to its zeros too."""
    product = torch.matmul if zeros_learn else rectified_product
    residual_ND = target_ND - (product(code_NF, dictionary.W_dec_FD) + dictionary.b_dec_D)
    code = SparseCode.from_dense(code_NF.detach())
    return terms_of_residual(dictionary, code, residual_ND, x_ND, state, progress)


def terms_of_residual(
    dictionary: Dictionary,
    code: SparseCode,
    residual_ND: Tensor,
    x_ND: Tensor,
    state: State,
    progress: Progress,
    signed: bool = False,
) -> Terms:
    """The terms once the residual is known."""
    losses = {"reconstruction": reconstruction(residual_ND, dictionary.total_variance)}
    losses |= auxk_term(dictionary, x_ND, residual_ND, state, progress, signed)
    return Terms(code, residual_ND, losses, dictionary.next_state(state, code))


def standard_weights(config: WithAuxK) -> dict[str, float]:
    """Weights of `standard_terms`."""
    return {"reconstruction": 1.0} | auxk_weight(config)


def auxk_weight(config: WithAuxK) -> dict[str, float]:
    """The weight of AuxK under its name; empty for a config that trains without."""
    return {"auxk": config.aux_weight} if config.aux_weight else {}


def auxk_term(
    dictionary: Dictionary,
    x_ND: Tensor,
    residual_ND: Tensor,
    state: State,
    progress: Progress,
    signed: bool = False,
) -> dict[str, Tensor]:
    """AuxK over the features that were dead before this batch, under its name; empty where its weight is 0."""
    config = dictionary.config
    assert isinstance(config, WithAuxK)
    if not config.aux_weight:
        return {}
    dead = dead_F(state.tokens_since_fired_F, progress.dead_after_tokens)
    return {"auxk": rows_loss(dictionary, x_ND, residual_ND, dead, config.k_aux_for(dictionary.d_model), signed)}


def rows_loss(
    dictionary: Dictionary, x_ND: Tensor, residual_ND: Tensor, chosen_F: Tensor, k_aux: int, signed: bool = False
) -> Tensor:
    """`functional.losses.auxk` over the features chosen by a mask."""
    chosen_A = chosen_F.nonzero()[:, 0]
    return auxk(
        x_ND,
        residual_ND,
        dictionary.W_enc_FD[chosen_A],
        dictionary.b_enc_F[chosen_A],
        dictionary.b_dec_D,
        dictionary.W_dec_FD[chosen_A],
        k_aux,
        signed,
    )
