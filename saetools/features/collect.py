"""One streaming pass over held-out rows: everything that is known of every feature, in memory independent of length."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetools.activations.base import ActivationBatch, RowSource
from saetools.dictionaries.base import Dictionary
from saetools.errors import DataError, MismatchError
from saetools.features.coactivation import Coactivation
from saetools.features.contexts import Contexts, WindowTexts
from saetools.features.firings import Firings, flat_code
from saetools.features.moments import Moments
from saetools.records import FrozenModel
from saetools.text.base import TokenBatch
from saetools.text.packing import TokenPlan


class CollectSettings(FrozenModel):
    """How much is kept of each feature."""

    n_tokens: int | None = Field(None, gt=0, description="rows to read, rounded up to whole windows; null: all")
    n_top: int = Field(20, ge=0, description="top contexts per feature")
    n_random: int = Field(25, ge=0, description="random contexts per feature in which it fires, shown by fifths")
    n_uniform: int = Field(5, ge=0, description="random places of the corpus, the same for all features")
    before: int = Field(40, ge=0, description="tokens shown before a peak, at most")
    after: int = Field(23, ge=0, description="tokens shown after a peak, at most")
    coactivation_tokens: int = Field(131_072, ge=0, description="tokens over which co-firing is counted; 0: not at all")
    seed: int = Field(0, description="of all samples")


@dataclass
class Collected:
    """What a pass gathers. `has_tokens`: whether rows were made from tokens; else the contexts are single rows."""

    settings: CollectSettings
    has_tokens: bool
    moments: Moments
    contexts: Contexts
    coactivation: Coactivation | None
    document_ids: dict[int, str] = field(default_factory=dict)

    def add(self, firings: Firings, tokens: TokenBatch) -> None:
        """Take in one batch."""
        self.moments.add(firings)
        self.contexts.add(firings, tokens)

    def window_texts(self, token_texts: Callable[[list[int]], list[str]]) -> WindowTexts:
        """The text of every window that examples lie in; one call of `token_texts` per window."""
        texts: dict[int, list[str]] = {}
        for number in self.contexts.needed().tolist():
            window = self.contexts.windows[number]
            real = window.positions >= 0
            found = iter(token_texts(window.ids[real].tolist()))
            texts[number] = [next(found) if is_real else "" for is_real in real.tolist()]
        return WindowTexts(texts, self.document_ids)


@torch.no_grad()
def collect(
    dictionary: Dictionary,
    source: RowSource,
    plan: TokenPlan | None,
    settings: CollectSettings,
    tick: Callable[[int], object] = lambda n_rows: None,
) -> Collected:
    """Encode the rows of a source and gather every feature's statistics and examples.

    `dictionary` is for raw rows (what `saetools.load` gives). `plan` is the plan of tokens that the source's rows were
    made from, None for a bare rows file: then contexts are the rows themselves. Codes stay sparse. `tick` is told the
    number of rows of each batch. Raises MismatchError where rows and plan differ, DataError where the source has no
    rows.
    """
    n_features = dictionary.config.n_features
    gathered = Collected(
        settings,
        plan is not None,
        Moments(n_features),
        _contexts(n_features, settings if plan else settings.model_copy(update={"before": 0, "after": 0})),
        Coactivation(n_features, settings.coactivation_tokens, settings.seed) if settings.coactivation_tokens else None,
    )
    token_batches = iter(()) if plan is None else plan.batches(0)
    rows_read = source.batches(0)
    try:
        for number, rows in rows_read:
            tokens = None if plan is None else _tokens_of(number, token_batches)
            left = None if settings.n_tokens is None else settings.n_tokens - gathered.moments.n_rows
            if left is not None and len(rows) >= left:
                rows, tokens = _up_to(left, rows, tokens)
            code = dictionary.encode(_on(dictionary, rows.x_ND), dict(rows.fields))
            flat, where_N2 = flat_code(code), rows.where_N2.cpu().numpy()
            gathered.add(Firings.of(flat, where_N2, tokens), tokens or _single_rows(number, where_N2))
            if gathered.coactivation is not None:
                gathered.coactivation.add(*flat, len(code))
            tick(len(code))
            if settings.n_tokens is not None and gathered.moments.n_rows >= settings.n_tokens:
                break
    finally:
        rows_read.close()
    if not gathered.moments.n_rows:
        raise DataError("the held-out split gave no rows, so there is nothing to show of the features.")
    _name_documents(gathered, source)
    return gathered


def _contexts(n_features: int, settings: CollectSettings) -> Contexts:
    return Contexts(
        n_features,
        settings.n_top,
        settings.n_random,
        settings.n_uniform,
        settings.before,
        settings.after,
        settings.seed,
    )


def row_texts(ids: list[int]) -> list[str]:
    """What is shown of rows that were made from no tokens."""
    return [f"row {position}" for position in ids]


def _single_rows(number: int, where_N2: np.ndarray) -> TokenBatch:
    """Rows as windows of one token, whose id tells rows apart and ends in the 32 bits of the position."""
    document_N, position_N = where_N2.T
    ids_N1 = ((document_N << 32) | position_N)[:, None]
    return TokenBatch(number, ids_N1, np.ones_like(ids_N1, bool), document_N, position_N[:, None])


def _on(dictionary: Dictionary, x_ND: Tensor) -> Tensor:
    return x_ND.to(dictionary.device, torch.float32)


def _tokens_of(number: int, batches: Iterator[TokenBatch]) -> TokenBatch:
    """The plan's batch with this number."""
    for tokens in batches:
        if tokens.number == number:
            return tokens
    raise MismatchError(
        f"the rows have a host batch {number}, but the plan of tokens ends before it: they were made from other text. "
        "Use the corpus and context that the rows came from."
    )


def _up_to(n: int, rows: ActivationBatch, tokens: TokenBatch | None) -> tuple[ActivationBatch, TokenBatch | None]:
    """The first n rows and the others of the window in which the last of them lies, whatever the size of batches."""
    if tokens is None:
        return rows.select(slice(0, n)), None
    document, position = rows.where_N2[n - 1].tolist()
    end_B = tokens.position_BT.max(1)
    window = int(((tokens.document_B == document) & (end_B >= position)).argmax())
    is_of_window_N = (rows.where_N2[n:, 0] == document) & (rows.where_N2[n:, 1] <= int(end_B[window]))
    keep_BT = tokens.keep_BT & (np.arange(len(end_B)) <= window)[:, None]
    return rows.select(slice(0, n + int(is_of_window_N.sum()))), replace(tokens, keep_BT=keep_BT)


def _name_documents(gathered: Collected, source: RowSource) -> None:
    windows = gathered.contexts.windows
    documents = {windows[number].document for number in gathered.contexts.needed().tolist()}
    gathered.document_ids.update({document: source.document_id(document) for document in sorted(documents)})
