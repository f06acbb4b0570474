"""Latents in the layout of delphi's cache, so that its explainers and scorers run on our dictionaries.

    <directory>/<point>/<first>_<last>.safetensors     for each of n_splits ranges of features, both ends included
        locations    [M, 3] uint16, or uint32 where too small: (window, column, feature - first)
        activations  [M] float16, float32 where a value would become infinite or 0
        tokens       [windows, T] int64
    <directory>/<point>/config.json

Windows are ours: BOS and padding have no latents. Layout read in EleutherAI/delphi, latents/cache.py (commit 078745e).
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from saetools import atomic
from saetools.activations.base import RowSource
from saetools.dictionaries.base import Dictionary
from saetools.errors import DataError
from saetools.features.firings import Firings, flat_code
from saetools.text.packing import TokenPlan


@torch.no_grad()
def export_delphi(
    dictionary: Dictionary, source: RowSource, plan: TokenPlan, directory: Path | str, n_tokens: int, n_splits: int = 5
) -> Path:
    """Write the latents of the first host batches, until n_tokens rows are in; the directory of the point.

    Files of latents that were there are removed: delphi reads whatever ranges it finds. All firings are held: about 16
    bytes each, n_tokens * L0 of them. Raises DataError without rows.
    """
    firings, tokens, n_rows = [], [], 0
    stream = source.batches(0)
    try:
        for (_, rows), batch in zip(stream, plan.batches(0), strict=False):
            code = dictionary.encode(rows.x_ND.to(dictionary.device, torch.float32))
            firings.append(Firings.of(flat_code(code), rows.where_N2.cpu().numpy(), batch))
            tokens.append(batch.ids_BT)
            n_rows += len(rows)
            if n_rows >= n_tokens:
                break
    finally:
        stream.close()
    if not n_rows:
        raise DataError("The held-out split gave no rows, so there are no latents to export. Add held-out documents.")
    folder = atomic.make_directory(Path(directory) / source.spec.point)
    (folder / "config.json").unlink(missing_ok=True)  # removed first and written last, so that it tells a whole export
    for before in folder.glob("*.safetensors"):
        if re.fullmatch(r"\d+_\d+", before.stem):
            before.unlink()
    location_M3, joined_M = _joined(firings, len(tokens[0]))
    ids = torch.from_numpy(np.concatenate(tokens))
    n_features = dictionary.config.n_features
    bounds = np.linspace(0, n_features, min(n_splits, n_features) + 1).astype(int)
    for first, end in pairwise(bounds.tolist()):
        inside = (location_M3[:, 2] >= first) & (location_M3[:, 2] < end)
        part = location_M3[inside] - [0, 0, first]
        columns = {"locations": _small(part), "activations": _half(joined_M[inside]), "tokens": ids}
        atomic.write_tensors(folder / f"{first}_{end - 1}.safetensors", columns)
    about = {
        "model_name": source.spec.host,
        "n_tokens": n_rows,
        "cache_ctx_len": ids.shape[1],
        "n_splits": len(bounds) - 1,
    }
    atomic.write_json(folder / "config.json", {**about, "batch_size": len(tokens[0]), "dataset_split": plan.split})
    return folder


def _joined(firings: list[Firings], n_windows: int) -> tuple[np.ndarray, np.ndarray]:
    """(locations int64 [M, 3], values [M]), by window, then column, then feature."""
    window = np.concatenate([part.window_M + i * n_windows for i, part in enumerate(firings)])
    column, feature = (np.concatenate([getattr(part, name) for part in firings]) for name in ("column_M", "feature_M"))
    order = np.lexsort((feature, column, window))
    location_M3 = np.stack([window, column, feature], 1)[order]
    return location_M3, np.concatenate([part.value_M for part in firings])[order]


def _small(location_M3: np.ndarray) -> torch.Tensor:
    fits = location_M3.max(initial=0) < 2**16
    return torch.from_numpy(location_M3.astype(np.uint16 if fits else np.uint32))


def _half(value_M: np.ndarray) -> torch.Tensor:
    with np.errstate(over="ignore"):
        half_M = value_M.astype(np.float16)
    return torch.from_numpy(half_M if np.isfinite(half_M).all() and half_M.all() else value_M)
