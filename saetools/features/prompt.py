"""Which features of a dictionary fire on a text that a person typed."""

import numpy as np
import torch

from saetools.dictionaries.base import Dictionary
from saetools.errors import DataError
from saetools.features.firings import flat_code
from saetools.features.records import PromptFirings
from saetools.lm.base import Host

MAX_TOKENS = 4096


def prompt_ids(host: Host, text: str) -> tuple[list[int], list[int]]:
    """(BOS where the host begins with it, the tokens of a text): together at most 4,096 and what the host takes.

    Raises DataError where the text has no token or more than that, or is none.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the prompt has half of a surrogate pair, {text[error.start]!r}, at character {error.start}, which no "
            "tokenizer takes. Give another text."
        ) from None
    ids = host.tokenize.encode([text])[0]
    bos = [host.tokenize.bos_id] if host.prepend_bos and host.tokenize.bos_id is not None else []
    limit = min(MAX_TOKENS, host.max_tokens) - len(bos)
    if not 0 < len(ids) <= limit:
        raise DataError(f"the prompt has {len(ids):,} tokens; 1 to {limit:,} are allowed. Give another text.")
    return bos, ids


@torch.no_grad()
def fire_on_prompt(dictionary: Dictionary, host: Host, point: str, text: str, n_features: int = 50) -> PromptFirings:
    """The code of each token of `text`, BOS left out: the strongest features over the whole text.

    `dictionary` is for raw rows. Raises DataError as `prompt_ids` does.
    """
    bos, ids = prompt_ids(host, text)
    ids_BT = torch.tensor([[*bos, *ids]], device=host.device)
    x_ND = host.activations(ids_BT, [point])[host.canonical(point)][0, len(bos) :]
    code = dictionary.encode(x_ND.to(dictionary.device, torch.float32))
    row_M, feature_M, value_M = flat_code(code)
    order = np.argsort(-np.abs(value_M), kind="stable")
    features: dict[int, list[tuple[int, float]]] = {}
    for row, feature, value in zip(row_M[order].tolist(), feature_M[order].tolist(), value_M[order].tolist()):
        if feature in features or len(features) < n_features:
            features.setdefault(feature, []).append((row, value))
    return PromptFirings(
        tuple(host.token_texts(ids)),
        tuple((feature, tuple(sorted(pairs))) for feature, pairs in features.items()),
    )
