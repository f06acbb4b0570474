"""Classes as targets of steering: how likely a token is of a class, and which class a feature announces.

    share_vc = share of the occurrences of token v, in labelled held-out text, that are of class c; 0 where never met
    P(c) of a prediction q = sum over v of q(v) share_vc
    rise_fc  = share of the tokens after firings of f that are of class c - share of all tokens that are of class c

A feature announces the class of greatest rise, if that is at least `least_rise`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saetools.evals.base import Subject
from saetools.evals.labelled import labelled_documents, python_labeller, rows_through
from saetools.evals.python_labels import CLASSES


@dataclass(frozen=True)
class TokenClasses:
    """Labels of some held-out documents, and what they say of the vocabulary."""

    share_VC: Tensor  # float64
    labels: dict[int, np.ndarray]  # document number -> bool [tokens, C], in the order they are read in

    def members(self, name: str) -> Tensor:
        """float64 [V]: share_vc of one class."""
        return self.share_VC[:, CLASSES.index(name)]

    @torch.no_grad()
    def announced(self, subject: Subject, features: Sequence[int], least_rise: float) -> list[str | None]:
        """The class that each feature announces, by one pass over the labelled rows; None where there is none."""
        counts = _Counts(subject.dictionary.config.n_features, features)
        last, labels = list(self.labels.items())[-1]
        for rows in rows_through(subject, last, len(labels) - 1):
            next_NC, known_N = self._next(rows.where_N2.cpu().numpy())
            code = subject.dictionary.encode(rows.x_ND.to(subject.dictionary.device, torch.float32))
            row_M, feature_M, _ = code.flat()
            counts.add(row_M.cpu(), feature_M.cpu(), next_NC, known_N)
        best_K, class_K = counts.rise_KC().max(1)
        pairs = zip(best_K.tolist(), class_K.tolist(), strict=True)
        return [CLASSES[c] if best >= least_rise else None for best, c in pairs]

    def _next(self, where_N2: np.ndarray) -> tuple[Tensor, Tensor]:
        """(float64 [N, C], bool [N]): the classes of the token after each, and whether they are known."""
        next_NC, known_N = np.zeros((len(where_N2), len(CLASSES))), np.zeros(len(where_N2), bool)
        for document in np.unique(where_N2[:, 0]).tolist():
            labels = self.labels.get(document)
            if labels is not None:
                here = np.flatnonzero((where_N2[:, 0] == document) & (where_N2[:, 1] + 1 < len(labels)))
                next_NC[here], known_N[here] = labels[where_N2[here, 1] + 1], True
        return torch.from_numpy(next_NC), torch.from_numpy(known_N)


def read_token_classes(subject: Subject, n_tokens: int, n_vocabulary: int) -> TokenClasses:
    """The classes of the first n_tokens held-out tokens. Raises NotApplicableError for text that is only streamed."""
    labels: dict[int, np.ndarray] = {}
    met_V, of_class_VC = np.zeros(n_vocabulary), np.zeros((n_vocabulary, len(CLASSES)))
    for number, ids, found in labelled_documents(subject, python_labeller, n_tokens):
        labels[number] = found
        np.add.at(met_V, ids, 1)
        np.add.at(of_class_VC, ids, found)
    return TokenClasses(torch.from_numpy(of_class_VC / np.maximum(met_V, 1)[:, None]), labels)


class _Counts:
    """How often each of K features fires before each class."""

    def __init__(self, n_features: int, features: Sequence[int]) -> None:
        self.place_F = torch.full((n_features,), -1)
        self.place_F[list(features)] = torch.arange(len(features))
        self.n_rows, self.class_C = 0, torch.zeros(len(CLASSES), dtype=torch.float64)
        self.fires_K = torch.zeros(len(features), dtype=torch.float64)
        self.both_KC = torch.zeros(len(features), len(CLASSES), dtype=torch.float64)

    def add(self, row_M: Tensor, feature_M: Tensor, next_NC: Tensor, known_N: Tensor) -> None:
        self.n_rows += int(known_N.sum())
        self.class_C += next_NC.sum(0)  # unknown rows are zero
        wanted_M = (self.place_F[feature_M] >= 0) & known_N[row_M]
        place_W, row_W = self.place_F[feature_M[wanted_M]], row_M[wanted_M]
        self.fires_K += torch.bincount(place_W, minlength=len(self.fires_K))
        self.both_KC.index_add_(0, place_W, next_NC[row_W])

    def rise_KC(self) -> Tensor:
        """P(class next | fires) - P(class next); -1 for features that never fired."""
        rise_KC = self.both_KC / self.fires_K[:, None] - self.class_C / max(self.n_rows, 1)
        return torch.where(self.fires_K[:, None] > 0, rise_KC, -1.0)
