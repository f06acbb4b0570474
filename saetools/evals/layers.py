"""Which layer of one model is like which of another? Layer matching between two hosts, without self-pairs.

Both hosts read the same tokens. For each measure the points of host A are compared with those of host B; a point is
matched rightly if its most similar point of the other host is the one of the same place. Each place counts with the
mean of its two directions, A's point among those of B and B's among those of A. Over the places:

    layer_matching_<measure>    share matched rightly; chance is 1 / number of points
    layer_margin_<measure>      mean of (similarity to the right point - greatest similarity to a wrong one)

Measures (functional/similarity.py has the formulas): cka, svcca, relative (representations), linear (R^2 of a linear
map; as svcca null where a part has no more tokens than the points have dimensions, which then explain anything), and
itda: |A and B| / |A or B| of the tokens that ITDA takes for atoms at the one and at the other point.

Self-pairs (a model with itself) are trivially right and would flatter every measure, as in the published scripts of
ITDA: the two hosts must differ. Rows are split into `n_folds` disjoint parts, each matched by itself; intervals
resample places, whose two directions are not independent. Series: the mean similarity matrix, row by row.

Cost: one pass of each host over the windows; N D^2 per pair of points; one ITDA construction per point and fold.
Cannot tell: why layers are alike; nor one point from another that is nearly the same within either host.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.itda import ITDA
from saetools.errors import DataError, MismatchError
from saetools.evals.base import EvalRecord, finite_record
from saetools.evals.bootstrap import mean_interval, too_few
from saetools.evals.sample import DRAW
from saetools.features.sampling import uniform
from saetools.functional.similarity import jaccard, linear_cka, linear_r2, relative_similarity, svcca
from saetools.lm.base import Host
from saetools.records import FrozenModel
from saetools.rng import generator
from saetools.text.packing import TokenPlan

ITDA_BATCH = 1024


def as_it_is(x_ND: Tensor) -> Any:
    """The view of measures that compare rows themselves."""
    return x_ND


@dataclass(frozen=True)
class Measure:
    """How alike two points are: what is made of the rows of each, and the similarity of the two; greater is more."""

    compare: Callable[[Any, Any], float]  # (view of x_ND, view of y_NE) of the same tokens
    view: Callable[[Tensor], Any] = as_it_is


class LayerMatchingConfig(FrozenModel):
    """Sizes."""

    n_tokens: int = Field(10_000, gt=0, description="held-out tokens compared, over all folds")
    n_read_tokens: int = Field(200_000, gt=0, description="held-out tokens from which they are drawn")
    n_folds: int = Field(5, gt=0, description="disjoint parts of the tokens, each matched by itself")
    n_components: int = Field(20, gt=0, description="principal components of SVCCA")
    n_anchors: int = Field(300, gt=0, description="anchor tokens of relative representations, at most half of a fold")
    itda_k: int = Field(16, gt=0, description="steps of pursuit with which ITDA explains a token")
    itda_min_cosine: float = Field(0.8, gt=0, lt=1, description="a token explained to a smaller cosine is an atom")


def default_measures(config: LayerMatchingConfig, seed: int) -> dict[str, Measure]:
    """CKA, SVCCA, relative representations, linear regression and the Jaccard index of ITDA's atoms."""

    def relative(x_ND: Tensor, y_NE: Tensor) -> float:
        order = generator(seed, "anchors", len(x_ND)).permutation(len(x_ND))
        return relative_similarity(x_ND, y_NE, torch.from_numpy(order[: min(config.n_anchors, len(x_ND) // 2)]))

    return {
        "cka": Measure(linear_cka),
        "svcca": Measure(partial(svcca, n_components=config.n_components)),
        "relative": Measure(relative),
        "linear": Measure(linear_r2),
        "itda": Measure(jaccard, partial(itda_tokens, k=config.itda_k, min_cosine=config.itda_min_cosine)),
    }


def itda_tokens(x_ND: Tensor, k: int, min_cosine: float) -> set[tuple[int, int]]:
    """The tokens (0, row) that an ITDA dictionary of any size takes for atoms, reading x_ND once from its start."""
    made = ITDA(ITDA.configure(n_features=len(x_ND), k=min(k, len(x_ND)), min_cosine=min_cosine), x_ND.shape[1])
    row_N, state = torch.arange(len(x_ND)), made.initial_state()
    where_N2 = torch.stack([torch.zeros_like(row_N), row_N], 1)
    for rows in row_N.split(ITDA_BATCH):
        state = made.update(x_ND[rows].float(), where_N2[rows], state).new_state
    return {(document, row) for document, row in made.where_F2[: int(made.n_atoms)].tolist()}


@torch.no_grad()
def match_layers(
    host_a: Host,
    host_b: Host,
    tokens: TokenPlan,
    points: Sequence[str],
    config: LayerMatchingConfig | None = None,
    measures: Mapping[str, Measure] | None = None,
    seed: int = 0,
) -> list[EvalRecord]:
    """The figures above for points that both hosts have, in the same order.

    `measures` are used in place of the default ones. Raises MismatchError for equal hosts or other tokenizers,
    DataError where there are fewer than two points or too few tokens.
    """
    config = config or LayerMatchingConfig()
    specs = [host.spec(points[0]) for host in (host_a, host_b)]
    if specs[0].revision is not None and specs[0].revision == specs[1].revision:
        raise MismatchError("the two hosts are one model: matching a model with itself is always right. Give another.")
    if host_a.tokenize.fingerprint() != host_b.tokenize.fingerprint():
        raise MismatchError("the hosts have different tokenizers, so their tokens cannot be paired.")
    if len(points) < 2:
        raise DataError("layers are matched among at least two points.")
    rows_a, rows_b = _rows((host_a, host_b), tokens, points, config)
    folds = np.array_split(np.arange(len(rows_a[0])), config.n_folds)
    if len(folds[-1]) < 2:
        raise DataError(f"{len(rows_a[0])} held-out tokens are too few for {config.n_folds} folds. Add text.")
    records = []
    for name, measure in (measures or default_measures(config, seed)).items():
        similarity_LLR = np.stack([_similarities(rows_a, rows_b, fold, measure) for fold in folds], 2)
        records += _figures(name, similarity_LLR, len(rows_a[0]), config, seed)
    return records


def _rows(
    hosts: tuple[Host, Host], tokens: TokenPlan, points: Sequence[str], config: LayerMatchingConfig
) -> list[list[Tensor]]:
    """For each host, x_ND at each point, of the same tokens: those of least hash, in the order of their hashes."""
    kept_N, rows = np.zeros(0), [[torch.zeros(0, dtype=torch.float32)] * len(points) for _ in hosts]
    read = 0
    for batch in tokens.batches(0):
        keep = batch.keep_BT & (read + batch.keep_BT.cumsum().reshape(batch.keep_BT.shape) <= config.n_read_tokens)
        keep_BT = torch.from_numpy(keep)
        document_BT = np.broadcast_to(batch.document_B[:, None], keep.shape)
        hash_N = np.r_[kept_N, uniform(DRAW, document_BT[keep], batch.position_BT[keep])]
        order = np.argsort(hash_N, kind="stable")[: config.n_tokens]
        kept_N, chosen = hash_N[order], torch.from_numpy(order)
        for host, parts in zip(hosts, rows, strict=True):
            x_by_point = host.activations(torch.from_numpy(batch.ids_BT).to(host.device), points)
            for i, point in enumerate(points):
                x_ND = x_by_point[host.canonical(point)][keep_BT.to(host.device)].cpu()
                parts[i] = torch.cat([parts[i].reshape(-1, x_ND.shape[1]), x_ND])[chosen]
        read += int(keep.sum())
        if read >= config.n_read_tokens:
            break
    return rows


def _similarities(a: list[Tensor], b: list[Tensor], fold: np.ndarray, measure: Measure) -> np.ndarray:
    """[points of A, points of B] on the rows of a fold."""
    rows = torch.from_numpy(fold)
    views_a, views_b = ([measure.view(x_ND[rows]) for x_ND in points] for points in (a, b))
    return np.array([[measure.compare(view, other) for other in views_b] for view in views_a])


def _figures(name: str, similarity_LLR: np.ndarray, n: int, config: LayerMatchingConfig, seed: int) -> list[EvalRecord]:
    right, margin = zip(*(judged(s) for s in (similarity_LLR, similarity_LLR.transpose(1, 0, 2))), strict=True)
    n_points = len(similarity_LLR)
    mean = similarity_LLR.mean(2)
    series = {str(i): row.tolist() for i, row in enumerate(mean)}
    settings = {"evaluation": "layer_matching", **config.model_dump(mode="json")}
    few = too_few(n_points, "points")
    chance = f"chance is {1 / n_points:.3f}; {n:,} tokens" + (f"; {few}" if few else "")
    records = []
    for figure, values, unit, note in (
        ("matching", right, "fraction of points", chance),
        ("margin", margin, "similarity", few),
    ):
        per_point = np.mean(values, 0)
        records.append(
            finite_record(
                f"layer_{figure}_{name}",
                per_point.mean(),
                unit,
                len(per_point),
                n_unit="points",
                spread=mean_interval(per_point, seed),
                series=series if figure == "matching" else None,
                config=settings,
                note=note,
            )
        )
    return records


def judged(similarity_LLR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per point (first axis), means over folds: is the right point (the diagonal) the most similar? By what margin?

    Both are nan where a fold has no similarity that is a number.
    """
    n_points = len(similarity_LLR)
    own = np.eye(n_points, dtype=bool)
    right_LR = similarity_LLR[own]
    wrong_LR = np.where(own[:, :, None], -np.inf, similarity_LLR).max(1)
    is_right_LR = np.where(np.isnan(similarity_LLR).all((0, 1)), np.nan, right_LR > wrong_LR)
    return is_right_LR.mean(1), (right_LR - wrong_LR).mean(1)
