"""What is known of a feature, as frozen records that travel from the collector to every page: no torch here."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from saetools.records import FrozenModel, PointSpec

BINS_PER_OCTAVE = 8
LOWEST_OCTAVE, HIGHEST_OCTAVE = -24, 24
N_BINS = BINS_PER_OCTAVE * (HIGHEST_OCTAVE - LOWEST_OCTAVE)
"""Bins of |value| on a logarithmic axis from 2^-24 to 2^24; whatever lies outside counts in the first or last bin."""

N_BANDS = 5
BAND_TITLES: dict[str, str] = {
    "top": "Top activations",
    "q5": "Strongest fifth",
    "q4": "Second fifth",
    "q3": "Middle fifth",
    "q2": "Fourth fifth",
    "q1": "Weakest fifth",
    "uniform": "Random contexts of the corpus",
}
"""In the order in which pages show them. A context's strength is its peak. Fifths are of the feature's own contexts:
what is shown of them is one uniform sample of the contexts in which it fires."""


def bin_of(magnitude: np.ndarray) -> np.ndarray:
    """int64 bin of each |value| > 0: floor(8 log2 |value|) + 192, clipped to the axis."""
    exponent = np.floor(BINS_PER_OCTAVE * np.log2(magnitude)).astype(np.int64)
    return np.clip(exponent - BINS_PER_OCTAVE * LOWEST_OCTAVE, 0, N_BINS - 1)


def bin_edges() -> np.ndarray:
    """float64 [N_BINS + 1]: bin b holds edges[b] <= |value| < edges[b + 1]."""
    return 2.0 ** (np.arange(N_BINS + 1) / BINS_PER_OCTAVE + LOWEST_OCTAVE)


class Histogram(FrozenModel):
    """Counts of a feature's values that are not zero, on the logarithmic axis of `bin_edges`, by sign."""

    first: int = Field(0, description="bin of the first entry of each list")
    positive: tuple[int, ...] = Field((), description="counts of values > 0")
    negative: tuple[int, ...] = Field((), description="counts of values < 0, by magnitude")


class TokenWeight(FrozenModel):
    """A token with a number, e.g. what a decoder row adds to its logit."""

    token: str
    weight: float


class Neighbour(FrozenModel):
    """Another feature with a similarity."""

    feature: int
    value: float


class LogitEffect(FrozenModel):
    """The direct effect of a decoder row on the logits, per unit of the code: W_U (norm weight * W_dec row)."""

    top: tuple[TokenWeight, ...] = ()
    bottom: tuple[TokenWeight, ...] = ()
    low: float = Field(0.0, description="lower end of the histogram")
    high: float = Field(0.0, description="upper end of the histogram")
    counts: tuple[int, ...] = Field((), description="tokens of the vocabulary in equal bins between low and high")


class FeatureRecord(FrozenModel):
    """One feature over the tokens that the store was made from. Values are codes of raw rows, and may be signed."""

    feature: int = Field(description="row of the dictionary")
    count: int = Field(description="tokens at which it fires, i.e. its value is not zero")
    density: float = Field(description="count / tokens")
    mean: float | None = Field(None, description="mean value where it fires")
    mean_square: float = Field(0.0, description="E[a^2] over all tokens, silent ones included")
    skewness: float | None = Field(None, description="of the values where it fires; None below two distinct values")
    kurtosis: float | None = Field(None, description="excess kurtosis of the values where it fires; None as above")
    max_value: float | None = Field(None, description="the value of greatest magnitude, with its sign")
    n_contexts: int = Field(0, description="windows of the corpus in which it fires")
    histogram: Histogram = Histogram()
    logits: LogitEffect | None = None
    decoder_neighbours: tuple[Neighbour, ...] = Field((), description="by cosine of decoder rows")
    encoder_neighbours: tuple[Neighbour, ...] = Field((), description="by cosine of encoder rows")
    jaccard: tuple[Neighbour, ...] = Field((), description="co-firing: |both| / |either|")
    pmi: tuple[Neighbour, ...] = Field((), description="ln P(both) / (P(one) P(other)), nats")
    pearson: tuple[Neighbour, ...] = Field((), description="correlation of the values over all tokens")
    map_xy: tuple[float, float] | None = Field(None, description="place on the map, see StoreInfo.map_note")


@dataclass(frozen=True)
class Example:
    """A stretch of text with a feature's value at each of its tokens; `tokens` concatenate to the decoded text."""

    band: str  # a key of BAND_TITLES
    document: str
    position: int  # of the first token, in its document
    peak: int  # index into tokens: the token that the example was chosen for
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    loss_effects: tuple[float, ...] = ()  # loss without the feature minus loss with it, nats, at each token

    @property
    def value(self) -> float:
        """The value at the peak."""
        return self.values[self.peak]

    def to_json(self) -> dict[str, Any]:
        """Plain data with sparse values, for shards and pages; `of_json` inverts it."""
        fired = [index for index, value in enumerate(self.values) if value]
        data = {
            "band": self.band,
            "document": self.document,
            "position": self.position,
            "peak": self.peak,
            "tokens": list(self.tokens),
            "at": fired,
            "values": [self.values[index] for index in fired],
        }
        return data | ({"loss_effects": list(self.loss_effects)} if self.loss_effects else {})

    @staticmethod
    def of_json(data: dict[str, Any]) -> "Example":
        """The example that `to_json` described."""
        values = [0.0] * len(data["tokens"])
        for index, value in zip(data["at"], data["values"], strict=True):
            values[index] = value
        return Example(
            str(data["band"]),
            str(data["document"]),
            int(data["position"]),
            int(data["peak"]),
            tuple(data["tokens"]),
            tuple(values),
            tuple(data.get("loss_effects", ())),
        )


@dataclass(frozen=True)
class PromptFirings:
    """Which features fire at the tokens of a prompt; `tokens` concatenate to it."""

    tokens: tuple[str, ...]
    features: tuple[
        tuple[int, tuple[tuple[int, float], ...]], ...
    ]  # (feature, its (token, value) pairs), strongest first


class StoreInfo(FrozenModel):
    """What a feature store was made of."""

    version: Literal[1] = 1
    title: str = Field(description="what pages are headed with")
    kind: str = Field(description="kind of the dictionary")
    n_features: int
    n_tokens: int = Field(description="tokens (rows) that the statistics are over")
    n_asked: int | None = Field(None, description="tokens that were asked for; null: all there are, or not recorded")
    spec: PointSpec
    corpus: str = Field("", description="fingerprint of the rows")
    seed: int = Field(0, description="of the random samples")
    logits_note: str = Field("", description="how logit effects were computed")
    coactivation_tokens: int = Field(0, description="tokens that co-firing was counted over")
    map_note: str = Field("", description="how map coordinates were computed")
    dictionary_hash: str = Field("", description="of the manifest of the dictionary; empty where it has none")
    loss_effects: int = Field(0, description="features whose top contexts have effects on the loss")
