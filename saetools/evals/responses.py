"""What steering did to predictions, position by position, and the area under its curve of effect over cost."""

import numpy as np
import torch
from torch import Tensor

from saetools.evals.splicing import CHUNK_ROWS, log_probabilities

TINY = torch.finfo(torch.float64).tiny


def response_columns(
    original_NV: Tensor, steered_NV: Tensor, targets_J: Tensor, next_N: Tensor, class_V: Tensor | None = None
) -> Tensor:
    """float64 [N, 4 or 6]: on-target effect, off-target KL, next-token loss added, squared centred logit change; and,
    where class_V = P(class | token) is given, ln P'(class) - ln P(class) and the KL without the class."""
    parts = zip(original_NV.split(CHUNK_ROWS), steered_NV.split(CHUNK_ROWS), next_N.split(CHUNK_ROWS), strict=True)
    return torch.cat([_columns(*part, targets_J, class_V) for part in parts])


def _columns(
    original_NV: Tensor, steered_NV: Tensor, next_N: Tensor, targets_J: Tensor, class_V: Tensor | None
) -> Tensor:
    log_q_NV, log_r_NV = log_probabilities(original_NV), log_probabilities(steered_NV)
    device = log_q_NV.device
    lost_NV = log_q_NV - log_r_NV
    targets_V = torch.zeros(lost_NV.shape[1], dtype=torch.float64, device=device)
    targets_V[targets_J.to(device)] = 1.0
    added_N = lost_NV.gather(1, next_N.to(device)[:, None])[:, 0]
    change_NV = (steered_NV - original_NV).to(log_q_NV)
    square_N = change_NV.square().sum(1) - change_NV.sum(1).square() / change_NV.shape[1]
    off_target_N = kl_of_the_rest(log_q_NV, log_r_NV, targets_V)
    columns = [-lost_NV[:, targets_V > 0].mean(1), off_target_N, added_N, square_N]
    if class_V is not None:
        class_V = class_V.to(device)
        before_N, after_N = ((log_NV.exp() @ class_V).clamp_min(TINY) for log_NV in (log_q_NV, log_r_NV))
        columns += [(after_N / before_N).log(), kl_of_the_rest(log_q_NV, log_r_NV, class_V)]
    return torch.stack(columns, 1).cpu()


def kl_of_the_rest(log_q_NV: Tensor, log_r_NV: Tensor, members_V: Tensor) -> Tensor:
    """KL of the predictions q from r, each without the share members_V of every token and renormalised; float64 [N].

    With Q = sum of q m and R = sum of r m: sum of q (1 - m) (ln q - ln r) / (1 - Q) + ln((1 - R) / (1 - Q)).
    """
    q_NV, others_V = log_q_NV.exp(), 1 - members_V
    rest_q_N, rest_r_N = (part.clamp_min(TINY) for part in (q_NV @ others_V, log_r_NV.exp() @ others_V))
    return (q_NV * (log_q_NV - log_r_NV)) @ others_V / rest_q_N + (rest_r_N / rest_q_N).log()


def area_under(cost: list[float], effect: list[float], limit: float) -> float:
    """(1 / limit) * integral of effect over cost from 0 to `limit`: linear between points, from (0, 0), then flat."""
    order = np.argsort(cost, kind="stable")
    x, y = np.r_[0.0, np.array(cost)[order]], np.r_[0.0, np.array(effect)[order]]
    inside = x < limit
    x, y = np.r_[x[inside], limit], np.r_[y[inside], np.interp(limit, x, y)]
    return float(np.trapezoid(y, x) / limit)
