"""Ten thousand features at once: every context shown lies in its band, and no two top contexts are nearly the same."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import ToyHost, ToyPlan, ToySource

from saetools.dictionaries.code import SparseCode
from saetools.features.collect import CollectSettings, collect
from saetools.features.contexts import GRAM_AFTER, GRAM_BEFORE, peak_quantiles
from saetools.features.records import N_BINS, bin_of

N_FEATURES, K = 10_000, 24


class Scattered:
    """k random signed features per row: `encode` needs no rows, only their number."""

    kind = "scattered"

    def __init__(self) -> None:
        self.config, self.device = SimpleNamespace(n_features=N_FEATURES), torch.device("cpu")
        self.random = torch.Generator().manual_seed(0)
        self.codes: list[SparseCode] = []

    def encode(self, x_ND: Tensor, fields: object = None) -> SparseCode:
        index_NK = torch.rand(len(x_ND), N_FEATURES, generator=self.random).topk(K, dim=1).indices
        value_NK = torch.randn(len(x_ND), K, generator=self.random).exp()
        self.codes.append(SparseCode(value_NK, index_NK.int(), N_FEATURES))
        return self.codes[-1]


def peaks_by_feature(dictionary: Scattered, plan: ToyPlan, source: ToySource) -> dict[int, list[float]]:
    """feature -> peaks of the windows in which it fires, by a plain dictionary over (feature, window)."""
    greatest: dict[tuple[int, int], float] = {}
    for tokens, rows, code in zip(plan.made, source.rows, dictionary.codes, strict=True):
        windows = np.searchsorted(tokens.document_B, rows.where_N2[:, 0].numpy()) + int(tokens.document_B[0])
        row_M, feature_M, value_M = (column.numpy() for column in code.flat())
        for window, feature, value in zip(windows[row_M].tolist(), feature_M.tolist(), value_M.tolist(), strict=True):
            key = (feature, window)
            greatest[key] = max(greatest.get(key, 0.0), value)
    found: dict[int, list[float]] = {}
    for (feature, _), value in greatest.items():
        found.setdefault(feature, []).append(value)
    return found


@pytest.mark.slow
def test_bands_hold_and_top_contexts_differ() -> None:
    plan = ToyPlan(n_batches=20, host_batch=32, width=48)
    source, dictionary = ToySource(plan), Scattered()
    settings = CollectSettings(n_top=6, n_random=8, n_uniform=0, before=8, after=6, coactivation_tokens=0)
    collected = collect(dictionary, source, plan, settings)  # type: ignore[arg-type]
    assert collected.contexts is not None
    peaks = peaks_by_feature(dictionary, plan, source)
    texts = collected.window_texts(ToyHost().token_texts)
    n_shown = {"top": 0, "fifths": 0}
    for feature, values in peaks.items():
        counts = np.bincount(bin_of(np.array(values, np.float32)), minlength=N_BINS)
        np.testing.assert_array_equal(collected.contexts.peak_counts_FB[feature], counts)
        edges = [0.0, *peak_quantiles(counts), np.inf]
        grams = set()
        for example in collected.contexts.examples(feature, texts):
            assert max(map(abs, example.values)) == abs(example.value), "no shown value is beyond the peak"
            if example.band == "top":
                n_shown["top"] += 1
                around = range(example.peak - GRAM_BEFORE, example.peak + GRAM_AFTER + 1)
                gram = tuple(example.tokens[i] if 0 <= i < len(example.tokens) else None for i in around)
                assert gram not in grams
                grams.add(gram)
            else:
                n_shown["fifths"] += 1
                number = int(example.band[1])
                assert edges[number - 1] <= abs(example.value) < edges[number]
    assert len(peaks) == N_FEATURES and min(n_shown.values()) > 5 * N_FEATURES
