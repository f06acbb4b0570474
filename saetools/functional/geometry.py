"""Angles among atoms: coherence, the Babel function, cosines of co-firing atoms. Blockwise: never an F x F matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_BYTES = 64 << 20


def unit(rows_FD: Tensor) -> Tensor:
    """float32 rows of norm 1; a zero row stays zero."""
    return torch.nn.functional.normalize(rows_FD.detach().float(), dim=1)


@dataclass(frozen=True)
class Angles:
    """Of the rows of a matrix with all others, by absolute cosine."""

    nearest_F: Tensor  # float32: greatest |cos| with another row
    largest_sum_M: Tensor  # float64 [M]: Babel function, entry m - 1 = max over rows of the sum of its m greatest |cos|
    mean: float  # of |cos| over all pairs of different rows
    mean_weighted: float  # the same with pair (i, j) weighted by weight_i * weight_j


@torch.no_grad()
def angles(atoms_FD: Tensor, n_babel: int, weight_F: Tensor | None = None) -> Angles:
    """Coherence of F >= 2 atoms. O(F^2 D) time, 64 MiB of memory.

    coherence = max_i nearest_i; Babel mu_1(m) = max_i sum of the m greatest |<d_i, d_j>|, j != i, so mu_1(1) is the
    coherence and mu_1(m) < 1 guarantees that sparse codes of m atoms are found (Tropp 2004, section 4.2).
    """
    unit_FD = unit(atoms_FD)
    n_features = len(unit_FD)
    weight_F = torch.ones(n_features, dtype=torch.float32, device="cpu") if weight_F is None else weight_F
    weight_F = weight_F.to(unit_FD.device, torch.float64)
    n_babel = min(n_babel, n_features - 1)
    nearest, babel_M = [], torch.zeros(n_babel, dtype=torch.float64, device="cpu")
    total = weighted = 0.0
    for start in range(0, n_features, block := max(1, BLOCK_BYTES // (4 * n_features))):
        cosine_RF = (unit_FD[start : start + block] @ unit_FD.T).abs_()
        own = torch.arange(len(cosine_RF), device=cosine_RF.device)
        cosine_RF[own, start + own] = 0
        total += float(cosine_RF.sum(dtype=torch.float64))
        weighted += float(weight_F[start : start + block] @ (cosine_RF.double() @ weight_F))
        best_RM = cosine_RF.topk(n_babel).values.double()
        nearest.append(best_RM[:, 0].float().cpu())
        babel_M = torch.maximum(babel_M, best_RM.cumsum(1).max(0).values.cpu())
    pairs = float(weight_F.sum() ** 2 - weight_F.square().sum())
    mean_weighted = weighted / pairs if pairs > 0 else float("nan")
    return Angles(torch.cat(nearest), babel_M, total / (n_features * (n_features - 1)), mean_weighted)


@torch.no_grad()
def row_cosines(a_FD: Tensor, b_FD: Tensor) -> Tensor:
    """float32 [F]: cosine of row i of a with row i of b."""
    return (unit(a_FD) * unit(b_FD)).sum(1)


@torch.no_grad()
def co_firing_cosines(values_NK: Tensor, indices_NK: Tensor, atoms_FD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sum over pairs [N], number of pairs [N], pairs in sequence [N, K - 1]) of |cos| of atoms that fire together.

    Atoms of a row are taken in descending |value|; a pair in sequence is an atom and the next one, nan where there is
    none. A stored zero takes no part. float64 on the CPU.
    """
    order_NK = values_NK.abs().argsort(dim=1, descending=True, stable=True)
    fires_NK = values_NK.gather(1, order_NK) != 0
    rows_NKD = unit(atoms_FD)[indices_NK.gather(1, order_NK).long()] * fires_NK[..., None]
    cosine_NKK = (rows_NKD @ rows_NKD.mT).abs().cpu().double()
    fires_NK = fires_NK.cpu()
    count_N = fires_NK.sum(1)
    sum_N = (cosine_NKK.sum((1, 2)) - cosine_NKK.diagonal(dim1=1, dim2=2).sum(1)) / 2
    next_NK = cosine_NKK.diagonal(offset=1, dim1=1, dim2=2).clone()
    next_NK[~(fires_NK[:, :-1] & fires_NK[:, 1:])] = torch.nan
    return sum_N, count_N * (count_N - 1) // 2, next_NK
