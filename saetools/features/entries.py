"""From a finished pass and the weights to what a store holds of each feature."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.features.ablation import with_loss_effects
from saetools.features.collect import Collected, row_texts
from saetools.features.effects import (
    LOGITS_FOLDED,
    LOGITS_PLAIN,
    LogitEffects,
    cosine_neighbours,
    logit_effects,
)
from saetools.features.places import MapMethod, feature_places
from saetools.features.records import FeatureRecord, Neighbour, StoreInfo
from saetools.features.store import sample_of_firing
from saetools.features.write import Entry
from saetools.lm.base import Host
from saetools.records import PointSpec

N_NEIGHBOURS = 20
Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Description:
    """What is said of a dictionary besides what a pass gathered."""

    title: str = "features"
    corpus: str = ""
    dictionary_hash: str = ""
    map: MapMethod = "pca"
    loss_effects: int = 0  # features whose top contexts get their effect on the loss; two passes of the host for each


def describe(
    collected: Collected, dictionary: Dictionary, spec: PointSpec, host: Host | None, wanted: Description
) -> tuple[StoreInfo, Iterator[Entry]]:
    """(what the store is of, its entries in the order of features), ready for `write_store`.

    Without a host there are no logit effects, no texts and no effects on the loss; examples of rows that were made from
    no tokens are their places. The entries are made one at a time.
    """
    W_dec_FD = dictionary.directions()
    effects, note = _logits(W_dec_FD, host, spec.point)
    map_xy_F2, map_note = feature_places(W_dec_FD, wanted.map, collected.settings.seed)
    n_cofired, cofiring = collected.coactivation.neighbours(N_NEIGHBOURS) if collected.coactivation else (0, {})
    W_enc_FD = dictionary.encoder_directions()
    pairs: dict[str, Pairs] = {"decoder_neighbours": _pairs(W_dec_FD), **cofiring}
    if W_enc_FD is not None:
        pairs["encoder_neighbours"] = _pairs(W_enc_FD)
    entries = _entries(collected, host, effects, pairs, map_xy_F2.tolist())
    ablated: list[int] = []
    if wanted.loss_effects and host is not None and collected.has_tokens:
        ablated = sample_of_firing(collected.moments.count_F, wanted.loss_effects, collected.settings.seed)
        entries = with_loss_effects(entries, collected.contexts, host, dictionary, spec.point, set(ablated))
    info = StoreInfo(
        title=wanted.title,
        kind=dictionary.kind,
        n_features=dictionary.config.n_features,
        n_tokens=collected.moments.n_rows,
        n_asked=collected.settings.n_tokens,
        spec=spec,
        corpus=wanted.corpus,
        seed=collected.settings.seed,
        logits_note=note,
        coactivation_tokens=n_cofired,
        map_note=map_note,
        dictionary_hash=wanted.dictionary_hash,
        loss_effects=len(ablated),
    )
    return info, entries


def _logits(W_dec_FD: Tensor, host: Host | None, point: str) -> tuple[LogitEffects | None, str]:
    if host is None:
        return None, ""
    W_U_VD, norm_weight_D = host.unembedding()
    if W_U_VD.shape[1] != W_dec_FD.shape[1] or not host.in_stream(point):
        return None, "the decoder's vectors are not of the residual stream: no direct path to the logits"
    device = W_dec_FD.device
    norm = None if norm_weight_D is None else norm_weight_D.detach().to(device)
    effects = logit_effects(W_dec_FD, W_U_VD.detach().to(device), norm)
    return effects, LOGITS_PLAIN if norm is None else LOGITS_FOLDED


def _entries(
    collected: Collected,
    host: Host | None,
    effects: LogitEffects | None,
    pairs: dict[str, Pairs],
    map_xy: list[list[float]],
) -> Iterator[Entry]:
    text_of = effects.texts(host.token_texts) if effects and host else {}
    is_readable = host is not None or not collected.has_tokens  # else nobody knows the text of the tokens
    texts = collected.window_texts(host.token_texts if host else row_texts) if is_readable else None
    moments, contexts = collected.moments, collected.contexts
    density, mean, mean_square = moments.density_F(), moments.mean_F(), moments.mean_square_F()
    skewness, kurtosis = moments.skewness_kurtosis_F()
    for feature in range(moments.n_features):
        fires = bool(moments.count_F[feature])
        record = FeatureRecord(
            feature=feature,
            count=int(moments.count_F[feature]),
            density=float(density[feature]),
            mean=_finite(mean[feature]),
            mean_square=float(mean_square[feature]),
            skewness=_finite(skewness[feature]),
            kurtosis=_finite(kurtosis[feature]),
            max_value=float(moments.max_F[feature]) if fires else None,
            n_contexts=int(contexts.peak_counts_FB[feature].sum()),
            histogram=moments.histogram(feature),
            logits=effects.record(feature, text_of) if effects else None,
            map_xy=(map_xy[feature][0], map_xy[feature][1]),
            **{name: _neighbours(pair, feature) for name, pair in pairs.items()},
        )
        yield Entry(record, contexts.examples(feature, texts) if texts else [])


def _pairs(rows_FD: Tensor) -> Pairs:
    cosine_FJ, feature_FJ = cosine_neighbours(rows_FD, N_NEIGHBOURS)
    return cosine_FJ.numpy(), feature_FJ.numpy()


def _neighbours(pairs: Pairs, feature: int) -> tuple[Neighbour, ...]:
    value_FJ, index_FJ = pairs
    listed = zip(index_FJ[feature].tolist(), value_FJ[feature].tolist(), strict=True)
    return tuple(Neighbour(feature=index, value=value) for index, value in listed if not math.isnan(value))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
