"""A place in the plane for every feature, such that features with similar decoder rows lie near one another."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from saetools.errors import ConfigError, nearest
from saetools.rng import torch_seed

MapMethod = Literal["pca", "umap"]
UMAP_NEIGHBOURS = 15


def feature_places(rows_FD: Tensor, method: MapMethod, seed: int) -> tuple[Tensor, str]:
    """(xy_F2, how they were made, for people). ConfigError at an unknown method or where umap-learn is missing."""
    if method == "pca":
        map_xy_F2, explained = principal_map(rows_FD)
        note = f"First two principal components of the unit decoder rows: {explained:.1%} of their variance"
        return map_xy_F2, note
    if method == "umap":
        note = f"UMAP of the decoder rows by cosine, {UMAP_NEIGHBOURS} neighbours: near means similar, far means little"
        return umap_map(rows_FD, seed), note
    known = get_args(MapMethod)
    raise ConfigError(f"unknown kind of map {method!r}.{nearest(method, known)} Known: {', '.join(known)}.")


@torch.no_grad()
def principal_map(rows_FD: Tensor) -> tuple[Tensor, float]:
    """(xy_F2, explained): unit rows on the two directions of greatest variance, and the fraction of variance there.

    Signs are such that the entry of greatest magnitude of each direction is positive. O(F D^2).
    """
    plane_FD = torch.nn.functional.pad(rows_FD, (0, max(0, 2 - rows_FD.shape[1])))  # of width 1: a line in it
    unit_FD = torch.nn.functional.normalize(plane_FD.double(), dim=1)
    centred_FD = unit_FD - unit_FD.mean(dim=0)
    variance_D, axes_DD = torch.linalg.eigh(centred_FD.T @ centred_FD)
    axes_D2 = axes_DD[:, -2:].flip(1)
    largest = axes_D2.abs().argmax(dim=0)
    axes_D2 = axes_D2 * axes_D2[largest, torch.arange(2, device=axes_D2.device)].sign()
    total = variance_D.sum().clamp_min(1e-30)
    return (centred_FD @ axes_D2).cpu(), float(variance_D[-2:].sum() / total)


def umap_class() -> Any:
    """The class of umap-learn; ConfigError where it is not installed."""
    try:
        from umap import UMAP
    except ImportError as error:
        raise ConfigError(
            "a UMAP map needs umap-learn: pip install umap-learn, or take --map pca, which needs nothing."
        ) from error
    return UMAP


def umap_map(rows_FD: Tensor, seed: int) -> Tensor:
    """float64 xy_F2: UMAP (McInnes, Healy, Melville 2018, arXiv 1802.03426) by cosine; the same for the same seed.

    Needs umap-learn (the extra `map`); ConfigError without it. Zero rows and fewer than 4 rows have no neighbours to
    lay out and go to the origin.
    """
    UMAP = umap_class()
    xy_F2 = torch.zeros(len(rows_FD), 2, dtype=torch.float64)
    real_F = rows_FD.norm(dim=1).cpu() > 0
    if int(real_F.sum()) < 4:
        return xy_F2
    rows = rows_FD.detach().float().cpu()[real_F].numpy()
    layout = UMAP(
        n_neighbors=min(UMAP_NEIGHBOURS, len(rows) - 1),
        metric="cosine",
        init="random" if len(rows) < 16 else "spectral",
        random_state=torch_seed(seed, "map of features") % 2**31,
        n_jobs=1,
    )
    xy_F2[real_F] = torch.from_numpy(layout.fit_transform(rows)).double()
    return xy_F2
