"""What some claims need beyond the evaluation suite, on the held-out data of one dictionary (evaluate_dictionaries.py).

Each measure names the labels that it is taken of, at L0 32, and what it gives is JSON.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary, make_dictionary
from saetools.dictionaries.iterative_shrinkage import IterativeShrinkage
from saetools.evals.base import Subject, make_evaluation, with_host
from saetools.evals.bootstrap import DocumentSums, Statistic
from saetools.evals.rows import coded_rows
from saetools.evals.run import run_evaluations
from saetools.evals.splicing import Splicer, counted_windows, cross_entropy_N
from saetools.functional.statistics import l0_N

STEPS = (8, 16, 32, 64, 128)
N_STEP_ROWS, N_SHRINKAGE_ROWS, N_SHRINKAGE_STEPS, N_CE, N_READ = 12_000, 1_500, 200, 8_000, 60_000


def steps(subject: Subject) -> list[dict[str, float]]:
    """FVU with other numbers of steps, or of features per token, than were trained with."""
    found = []
    for k in STEPS:
        again = replace(subject, dictionary=_with_k(subject.dictionary, k))
        records = run_evaluations(again, [make_evaluation("reconstruction", n_tokens=N_STEP_ROWS)])
        found.append({"k": k, "fvu": next(r.value for r in records if r.name == "fvu")})
    return found


@torch.no_grad()
def _with_k(dictionary: Dictionary, k: int) -> Dictionary:
    """The same weights with another k."""
    made = make_dictionary(dictionary.config.model_copy(update={"k": k}), dictionary.d_model)
    made.load_state_dict(dictionary.state_dict())
    made.spec, made.calibration = dictionary.spec, dictionary.calibration
    return made.eval()


WAYS = ("without", "with", "of other rows")
SHARES = (0.1, 1.0)


@torch.no_grad()
def gradients_at_inference(subject: Subject) -> dict[str, Any]:
    """A gradient dictionary whose features are chosen without gradients, with them, or with those of other rows.

    `recovered`: CE recovered (zero-ablation); `difference`: with less without, and its interval over documents;
    `fvu` of each; `added`: nats added per token where that share of the error x - recon is put in. A small share is
    where effects are first-order, which is what the score of the selection is about.
    """
    parts = with_host(subject)
    splicer, generator = Splicer(subject, parts), torch.Generator().manual_seed(0)
    sums = DocumentSums(3 + len(SHARES) * len(WAYS))  # predictions, original, zero, each share and way
    left, seen = torch.zeros(len(WAYS), dtype=torch.float64), []
    for windows in counted_windows(parts, N_CE, N_READ):
        rows = parts.host.activations_and_gradients(windows.ids_BT, [parts.point], windows.keep_BT)
        x_BTD, g_BTD = rows[parts.point]
        kept_BT = windows.keep_BT & (torch.linalg.vector_norm(x_BTD.float(), dim=-1) <= splicer.norm_limit)
        x_ND, grad_ND = x_BTD[kept_BT].float(), g_BTD[kept_BT]
        others_ND = grad_ND[torch.randperm(len(grad_ND), generator=generator)]
        recons = [subject.dictionary(x_ND, {} if g is None else {"grad": g}) for g in (None, grad_ND, others_ND)]
        left += torch.stack([(x_ND - recon_ND).square().sum() for recon_ND in recons]).double().cpu()
        seen.append(x_ND.cpu())
        spliced = [x_ND + share * (recon_ND - x_ND) for share in SHARES for recon_ND in recons]
        runs = (None, torch.zeros_like, *(lambda x_ND, y_ND=y_ND: y_ND.to(x_ND.dtype) for y_ND in spliced))
        losses = [cross_entropy_N(splicer.logits(windows, run), windows.target_N) for run in runs]
        sums.add(windows.document_N, torch.stack([torch.ones_like(losses[0]), *losses], 1).double().cpu())

    def recovered(way: str) -> Statistic:
        column = 3 + SHARES.index(1.0) * len(WAYS) + WAYS.index(way)
        return lambda totals: (totals[:, 2] - totals[:, column]) / (totals[:, 2] - totals[:, 1])

    def difference(totals: np.ndarray) -> np.ndarray:
        return recovered("with")(totals) - recovered("without")(totals)

    totals, x_ND = sums.totals(), torch.cat(seen).double()
    fvu = left / (x_ND - x_ND.mean(0)).square().sum()
    added = ((totals[3:] - totals[1]) / totals[0]).reshape(len(SHARES), len(WAYS))
    return {
        "recovered": {way: sums.value(recovered(way)) for way in WAYS},
        "difference": [sums.value(difference), *(sums.interval(difference, 0) or (math.nan, math.nan))],
        "fvu": dict(zip(WAYS, fvu.tolist(), strict=True)),
        "added": {str(share): dict(zip(WAYS, row.tolist(), strict=True)) for share, row in zip(SHARES, added)},
    }


@torch.no_grad()
def amortisation(subject: Subject) -> dict[str, Any]:
    """Iterative shrinkage over the dictionary's own atoms at about its L0; the weight by secant steps on few rows.

    `difference`: FVU of shrinkage less that of the encoder, and its interval over documents.
    """
    dictionary = subject.dictionary
    every = N_READ // N_SHRINKAGE_ROWS  # so that the rows are of many documents
    rows = [(r.x_ND[::every], r.where_N2[::every, 0]) for r in coded_rows(subject, N_READ)]
    x_ND, document_N = (torch.cat(parts) for parts in zip(*rows, strict=True))
    squares_N = (x_ND - x_ND.mean(0)).square().sum(1)
    errors_N, l0 = _errors_and_l0(dictionary, x_ND)
    known: list[tuple[float, float]] = []
    weight = 0.002
    for _ in range(6):
        coder = IterativeShrinkage.over(dictionary, weight=weight, n_steps=N_SHRINKAGE_STEPS)
        sparsity = _errors_and_l0(coder, x_ND[:: len(x_ND) // 100])[1]
        known.append((math.log(weight), math.log(max(sparsity, 0.1))))
        slope = -1.0
        if len(known) > 1:
            (u, v), (w, z) = known[-2:]
            slope = min(-0.3, max(-3.0, (z - v) / (w - u))) if w != u else -1.0
        weight = math.exp(known[-1][0] + (math.log(l0) - known[-1][1]) / slope)
    coder = IterativeShrinkage.over(dictionary, weight=weight, n_steps=N_SHRINKAGE_STEPS)
    shrunk_N, l0_shrunk = _errors_and_l0(coder, x_ND)
    sums = DocumentSums(3)
    sums.add(document_N, torch.stack([squares_N, errors_N, shrunk_N], 1).double())

    def difference(totals: np.ndarray) -> np.ndarray:
        return (totals[:, 2] - totals[:, 1]) / totals[:, 0]

    return {
        "fvu_encoder": sums.value(lambda totals: totals[:, 1] / totals[:, 0]),
        "fvu_shrinkage": sums.value(lambda totals: totals[:, 2] / totals[:, 0]),
        "difference": [sums.value(difference), *(sums.interval(difference, 0) or (math.nan, math.nan))],
        "l0_encoder": l0,
        "l0_shrinkage": l0_shrunk,
        "n_rows": len(x_ND),
    }


def _errors_and_l0(dictionary: Dictionary, x_ND: Tensor) -> tuple[Tensor, float]:
    """Squared error of each row, and mean L0."""
    code = dictionary.encode(x_ND)
    return (x_ND - dictionary.decode(code)).square().sum(1), float(l0_N(code).double().mean())


MEASURES: dict[str, tuple[tuple[str, ...], Callable[[Subject], Any]]] = {
    "steps": (("matching_pursuit", "topk"), steps),
    "gradients_at_inference": (("gradient",), gradients_at_inference),
    "amortisation": (("topk",), amortisation),
}
"""name -> labels, measure."""
