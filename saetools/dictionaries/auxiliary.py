"""AuxK for any dictionary with encoder weights: gathers the rows of its dead features."""

from torch import Tensor

from saetools.dictionaries.base import Dictionary, Progress, State
from saetools.functional.losses import auxk
from saetools.functional.statistics import dead_F


def dead_features_loss(
    dictionary: Dictionary, x_ND: Tensor, residual_ND: Tensor, state: State, progress: Progress, k_aux: int
) -> Tensor:
    """`functional.losses.auxk` over the features that were dead before this batch; 0 where none was."""
    dead_A = dead_F(state.tokens_since_fired_F, progress.dead_after_tokens).nonzero()[:, 0]
    return auxk(
        x_ND,
        residual_ND,
        dictionary.W_enc_FD[dead_A],
        dictionary.b_enc_F[dead_A],
        dictionary.b_dec_D,
        dictionary.W_dec_FD[dead_A],
        k_aux,
    )
