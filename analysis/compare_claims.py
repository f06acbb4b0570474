"""What the claims of `compare_dictionaries.py` need beyond its table, on the finished units of one seed.

    python analysis/compare_claims.py runs/compare --seed 0

Writes `claims.json` into the seed's directory: pursuit by other numbers of steps and how alike successive atoms are;
the gradient dictionary with gradients at inference; iterative shrinkage over topk's atoms.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from compare_dictionaries import N_CE, Unit
from torch import Tensor

from saetools import atomic
from saetools.dictionaries.base import Dictionary
from saetools.dictionaries.iterative_shrinkage import IterativeShrinkage
from saetools.dictionaries.matching_pursuit import MatchingPursuit
from saetools.evals.splicing import cross_entropy_N, log_probabilities
from saetools.formats.load import load
from saetools.functional.statistics import l0_N
from saetools.pipeline import Data, read_config

N_ROWS, N_SHRINKAGE = 10_000, 1_500
STEPS = (8, 16, 32, 64, 128)


def fvu(dictionary: Dictionary, x_ND: Tensor) -> tuple[float, float]:
    """(FVU, mean L0) on rows."""
    code = dictionary.encode(x_ND)
    left = (x_ND - dictionary.decode(code)).square().sum() / (x_ND - x_ND.mean(0)).square().sum()
    return float(left), float(l0_N(code).double().mean())


def pursuit(dictionary: MatchingPursuit, x_ND: Tensor) -> dict[str, Any]:
    """FVU by inference steps; mean |cos| of an atom with the next one chosen, and of random pairs of those chosen."""
    found = {str(steps): fvu(dictionary.with_inference(steps), x_ND)[0] for steps in STEPS}
    code = dictionary.encode(x_ND[:1000])
    atoms_NKD, used_NK = dictionary.directions()[code.indices.long()], code.values != 0
    both = used_NK[:, 1:] & used_NK[:, :-1]
    following = (atoms_NKD[:, 1:] * atoms_NKD[:, :-1]).sum(-1)[both].abs().mean()
    chosen_M = code.indices[used_NK].long()
    shuffled_M = chosen_M[torch.randperm(len(chosen_M), generator=torch.Generator().manual_seed(0))]
    apart = chosen_M != shuffled_M
    directions = dictionary.directions()
    random = (directions[chosen_M] * directions[shuffled_M]).sum(1)[apart].abs().mean()
    return {"k": dictionary.config.k, "fvu": found, "cosine_next": float(following), "cosine_random": float(random)}


def gradient(dictionary: Dictionary, data: Data, limit: float) -> dict[str, float]:
    """CE recovered (zero-ablation) with and without gradients at inference, over the same N_CE predictions."""
    host, point, left = data.host, data.config.activations.point, N_CE
    totals = torch.zeros(4, dtype=torch.float64)  # original, zero, without, with
    for tokens in data.plan("heldout").batches(0):
        ids_BT, keep_BT = torch.from_numpy(tokens.ids_BT), torch.from_numpy(tokens.keep_BT)
        x_BTD, g_BTD = host.activations_and_gradients(ids_BT, [point], keep_BT)[point]
        counted_BT = torch.zeros_like(keep_BT)
        counted_BT[:, :-1] = keep_BT[:, :-1] & keep_BT[:, 1:]
        counted_BT &= (counted_BT.flatten().cumsum(0) <= left).view_as(counted_BT)
        replaced_BT = keep_BT & (x_BTD.norm(dim=-1) <= limit)
        rows, fields = x_BTD[replaced_BT], {"grad": g_BTD[replaced_BT]}
        replacements = [None, torch.zeros_like(rows), dictionary(rows), dictionary(rows, fields)]
        target_N = ids_BT.roll(-1, 1)[counted_BT]
        for i, recon_ND in enumerate(replacements):
            spliced_BTD = x_BTD.clone()
            if recon_ND is not None:
                spliced_BTD[replaced_BT] = recon_ND
            logits_NV = host.logits(ids_BT, {point: lambda x, new=spliced_BTD: new})[counted_BT]
            totals[i] += cross_entropy_N(log_probabilities(logits_NV), target_N).sum()
        left -= int(counted_BT.sum())
        if left <= 0:
            break
    original, zero, without, with_gradients = totals.tolist()
    return {"ce_without": (zero - without) / (zero - original), "ce_with": (zero - with_gradients) / (zero - original)}


def amortisation(topk: Dictionary, x_ND: Tensor) -> dict[str, float]:
    """Shrinkage over topk's atoms at about topk's L0: six secant steps in the weight on a few rows, then all rows."""
    own, l0 = fvu(topk, x_ND)
    known: list[tuple[float, float]] = []
    weight = 0.002
    for _ in range(6):
        sparsity = fvu(IterativeShrinkage.over(topk, weight=weight), x_ND[:: len(x_ND) // 100])[1]
        known.append((math.log(weight), math.log(max(sparsity, 0.1))))
        slope = -1.0
        if len(known) > 1:
            (u, v), (w, z) = known[-2:]
            slope = min(-0.3, max(-3.0, (z - v) / (w - u))) if w != u else -1.0
        weight = math.exp(known[-1][0] + (math.log(l0) - known[-1][1]) / slope)
    best, sparsity = fvu(IterativeShrinkage.over(topk, weight=weight), x_ND)
    return {
        "fvu_encoder": own,
        "fvu_shrinkage": best,
        "l0_encoder": l0,
        "l0_shrinkage": sparsity,
        "weight": weight,
        "n_rows": len(x_ND),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(1)
    path = a.runs / f"seed{a.seed}" / "claims.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seed": a.seed}
    units = {label: Unit(label, 32, a.seed).directory(a.runs) for label in ("matching_pursuit", "gradient", "topk")}
    ready = {label: load(directory) for label, directory in units.items() if (directory / "result.json").exists()}
    if not ready:
        raise SystemExit(f"no finished unit of seed {a.seed} in {a.runs}")
    data = Data(read_config(units[next(iter(ready))]))
    calibration = next(iter(ready.values())).calibration
    assert calibration is not None
    rows = KeptRows(data.source("heldout", calibration), N_ROWS)
    x_ND = torch.cat([batch.x_ND for _, batch in rows.batches()])[:N_ROWS]
    measures = {
        "pursuit": ("matching_pursuit", lambda d: pursuit(d, x_ND)),
        "amortisation": ("topk", lambda d: amortisation(d, x_ND[:N_SHRINKAGE])),
        "gradient": ("gradient", lambda d: gradient(d, data, 10 * calibration.median_norm)),
    }
    for name, (label, measure) in measures.items():
        if name not in found and label in ready:
            found[name] = measure(ready[label])
            atomic.write_json(path, found)
            print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
