"""What the writers of other libraries' layouts share: which kinds infer by a threshold, and how others say it."""

from typing import Any

import torch
from torch import Tensor

from saetools.dictionaries.base import Dictionary

PER_ROW = ("topk", "variational")
"""Kinds that keep the k largest of each row (topk unless its inference is set to a threshold)."""

POSITIVE = ("relu_l1", "p_anneal")
"""Kinds that keep whatever is positive."""

THRESHOLD = {
    "topk": "threshold",  # where inference is set to it
    "mutual_choice": "threshold",
    "matryoshka": "threshold",
    "feature_choice": "threshold_F",
}
"""The buffer with what inference compares pre-activations with, by kind."""


def keeps_by_threshold(dictionary: Dictionary) -> bool:
    """Whether inference keeps all from a learnt threshold on."""
    return THRESHOLD.get(dictionary.kind) in dictionary.state_dict()


def threshold_below(dictionary: Dictionary) -> Tensor:
    """The next number below the learnt threshold, a scalar or [F].

    Ours keeps pre >= t, other libraries pre > t: with the next smaller number exactly the same features fire. Not below
    0: what is not positive fires in no library, and dictionary_learning takes a negative threshold for one not set.
    """
    own = dictionary.state_dict()
    reached = own[THRESHOLD[dictionary.kind]].to(own["b_enc_F"].dtype)
    return torch.nextafter(reached, torch.full_like(reached, -torch.inf)).clamp_min(0)


def setting(dictionary: Dictionary, name: str) -> Any:
    """A setting of the dictionary's kind."""
    return dictionary.config.model_dump()[name]
