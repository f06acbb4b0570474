"""How alike two matrices of activations of the same N tokens are: X [N, D], Y [N, E], any widths. All in float64."""

import torch
from torch import Tensor


def linear_cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """||Xc' Yc||_F^2 / (||Xc' Xc||_F ||Yc' Yc||_F), columns centred: 1 up to rotation, shift and scale.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), linear kernel.
    """
    x_ND, y_NE = _centred(x_ND), _centred(y_NE)
    cross = (x_ND.T @ y_NE).square().sum()
    return float(cross / (torch.linalg.matrix_norm(x_ND.T @ x_ND) * torch.linalg.matrix_norm(y_NE.T @ y_NE)))


def svcca(x_ND: Tensor, y_NE: Tensor, n_components: int = 20) -> float:
    """Mean canonical correlation of the two spans of the first principal components; nan where one is everything.

    Source: Raghu et al. 2017 (arXiv 1706.05806), with a fixed number of components (theirs: 99 % of the variance).
    """
    left, right = (_basis(v, n_components) for v in (x_ND, y_NE))
    if max(left.shape[1], right.shape[1]) >= len(x_ND) - 1:
        return float("nan")
    return float(torch.linalg.svdvals(left.T @ right).clamp(0, 1).mean())


def relative_similarity(x_ND: Tensor, y_NE: Tensor, anchors_A: Tensor) -> float:
    """Mean over tokens of cos(r_x, r_y), r = cosines of a token with the anchor tokens, in each space.

    Source: Moschella et al. 2022 (arXiv 2209.15430); used between language models by Leask et al. 2025.
    """
    relative = []
    for v in (x_ND, y_NE):
        unit = torch.nn.functional.normalize(v.double(), dim=1)
        relative.append(unit @ unit[anchors_A].T)
    return float(torch.cosine_similarity(relative[0], relative[1], dim=1).mean())


def linear_r2(x_ND: Tensor, y_NE: Tensor) -> float:
    """Share of the variance of Y that a linear map of X explains: ||Q' Yc||_F^2 / ||Yc||_F^2, Q a basis of span Xc.

    nan where X has so many dimensions (N - 1) that it explains any Y.
    """
    y_NE, basis_NR = _centred(y_NE), _basis(x_ND, x_ND.shape[1])
    if basis_NR.shape[1] >= len(x_ND) - 1:
        return float("nan")
    return float((basis_NR.T @ y_NE).square().sum() / y_NE.square().sum())


def jaccard(a: set[tuple[int, int]], b: set[tuple[int, int]]) -> float:
    """|A and B| / |A or B| of two sets of tokens (document, position), e.g. the atoms of two ITDA dictionaries.

    nan for two empty sets. Source: Leask et al. 2025 (arXiv 2505.17769), section on dictionary similarity.
    """
    return len(a & b) / len(a | b) if a or b else float("nan")


def _centred(x_ND: Tensor) -> Tensor:
    x_ND = x_ND.double()
    return x_ND - x_ND.mean(0)


def _basis(x_ND: Tensor, n_components: int) -> Tensor:
    """Orthonormal [N, at most n_components]: left singular vectors of the centred rows, dead directions left out."""
    u, s, _ = torch.linalg.svd(_centred(x_ND), full_matrices=False)
    kept = (s > 1e-10 * s[:1]).nonzero()[:n_components, 0]
    return u[:, kept]
