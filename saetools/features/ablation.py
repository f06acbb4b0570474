"""What a feature is worth where it fires most: the host's loss without it, minus its loss with it, token by token."""

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.features.contexts import Contexts
from saetools.features.steering import FeatureEdit
from saetools.features.write import Entry
from saetools.lm.base import Host

LOGIT_BYTES = 128 << 20
"""Logits of one forward pass at most (float32); windows are run a few at a time where the vocabulary is large."""


@torch.no_grad()
def loss_effects(host: Host, dictionary: Dictionary, point: str, ids_BT: Tensor, feature: int) -> Tensor:
    """effect_BT = CE of the token without the feature - CE of it with the feature, nats; column 0 predicts nothing: 0.

    Positive: the feature helps to predict that token. Without: x - a d at every position but BOS, where a is the
    feature's code and d its decoder row; what the dictionary does not explain stays.
    """
    edit = FeatureEdit(dictionary, feature, "ablate", positions=slice(int(host.prepend_bos), None))
    edits, effects = {host.canonical(point): edit}, []
    for part_BT in ids_BT.split(max(1, LOGIT_BYTES // (4 * ids_BT.shape[1] * host.unembedding()[0].shape[0]))):
        with_BT = _losses(host.logits(part_BT), part_BT)
        effects.append(_losses(host.logits(part_BT, edits), part_BT) - with_BT)
    return torch.nn.functional.pad(torch.cat(effects), (1, 0)).cpu()


def with_loss_effects(
    entries: Iterator[Entry],
    contexts: Contexts,
    host: Host,
    dictionary: Dictionary,
    point: str,
    features: Collection[int],
) -> Iterator[Entry]:
    """The entries, with `loss_effects` in the top examples of `features`. Two passes of the host over each context."""
    for entry in entries:
        feature = entry.record.feature
        slots = contexts.ranked("top", feature) if feature in features else []
        if not slots:
            yield entry
            continue
        numbers = [int(contexts.banks["top"].number_FS[feature, slot]) for slot in slots]
        windows = [contexts.windows[number] for number in numbers]
        ids_BT = torch.stack([torch.from_numpy(window.ids).long() for window in windows]).to(host.device)
        effect_BT = loss_effects(host, dictionary, point, ids_BT, feature)
        examples = list(entry.examples)
        for index, (slot, window) in enumerate(zip(slots, windows, strict=True)):
            peak = int(contexts.columns["top"][feature, slot])
            start, stop = window.span(peak, contexts.before, contexts.after)
            examples[index] = replace(examples[index], loss_effects=tuple(effect_BT[index, start:stop].tolist()))
        yield Entry(entry.record, examples)


def _losses(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Cross-entropy [B, T - 1] of tokens 1, 2, ... given those before, nats."""
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].float().flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    ).view(len(ids_BT), -1)
