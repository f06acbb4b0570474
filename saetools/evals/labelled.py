"""Held-out rows with labels, sampled evenly by group: what probes are trained and tested on.

Labels come from the text alone (python_labels.py, or the token's own characters), so they are exact at any scale.
Documents are split between training and test by a hash; within a group a uniform sample is kept, whatever the order.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetools.activations.base import ActivationBatch
from saetools.evals.base import Evaluation, NotApplicableError, Subject, Tick, with_host
from saetools.evals.python_labels import CLASSES, labels
from saetools.evals.sample import TokenSample
from saetools.features.sampling import uniform
from saetools.rng import torch_seed

TEST_SHARE = 0.3
SPLITS = ("train", "test")

Labeller = Callable[[str, list[str]], np.ndarray | None]
"""(a document's text, the texts of its tokens, which concatenate to it) -> bool [tokens, classes]; None: left out."""
Groups = Mapping[str, Callable[[np.ndarray], np.ndarray]]
"""name -> the members of the group among rows of labels: bool [n, classes] -> bool [n]."""


class LabelledConfig(Evaluation.Config):
    """Sizes that all labelled evaluations share."""

    n_tokens: int = Field(200_000, gt=0, description="held-out tokens among which rows are sampled")
    n_train: int = Field(1000, gt=0, description="training rows per class and side")
    n_test: int = Field(500, gt=0, description="test rows per class and side")
    min_rows: int = Field(50, gt=0, description="rows per side and split below which a class is left out")


@dataclass(frozen=True)
class LabelledRows:
    """The sampled rows, each once, and which of them belong to each group's sample."""

    x_ND: Tensor  # float32, on the CPU
    document_N: np.ndarray  # int64
    members: dict[tuple[str, str], np.ndarray]  # (group, split) -> rows
    n_read: int  # held-out rows among which they were found

    def task(self, positive: str, negative: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows, y): equally many of each group, y True for the positive one."""
        ones, zeros = self.members[positive, split], self.members[negative, split]
        n = min(len(ones), len(zeros))
        return np.r_[ones[:n], zeros[:n]], np.r_[np.ones(n, bool), np.zeros(n, bool)]

    def size(self, group: str) -> int:
        """Rows in the smaller split of a group."""
        return min(len(self.members[group, split]) for split in SPLITS)


def python_labeller(text: str, token_texts: list[str]) -> np.ndarray | None:
    """CLASSES at the first character of each token that is no space."""
    lengths = np.array([len(token) for token in token_texts])
    blanks = np.array([len(token) - len(token.lstrip()) for token in token_texts])
    starts = np.cumsum(lengths) - lengths + np.where(blanks < lengths, blanks, 0)
    return labels(text, np.minimum(starts, max(len(text) - 1, 0))) if text else None


def class_groups(names: tuple[str, ...] = CLASSES) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """`name` and `not name` for each class."""
    groups: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for column, name in enumerate(names):
        groups[name] = lambda labels_NC, c=column: labels_NC[:, c]  # type: ignore[misc]
        groups[f"not {name}"] = lambda labels_NC, c=column: ~labels_NC[:, c]  # type: ignore[misc]
    return groups


def usable_classes(rows: LabelledRows, min_rows: int, names: tuple[str, ...] = CLASSES) -> list[str]:
    """The classes with enough rows on both sides in both splits; NotApplicableError where there are none."""
    usable = [name for name in names if min(rows.size(name), rows.size(f"not {name}")) >= min_rows]
    if not usable:
        raise NotApplicableError(
            f"no class has {min_rows} rows on each side in both splits; raise n_tokens, or give text of more documents "
            "(all rows of one are for training or for the test)"
        )
    return usable


def collect_labelled(
    subject: Subject, labeller: Labeller, groups: Groups, n_tokens: int, per_group: tuple[int, int], tick: Tick
) -> LabelledRows:
    """Up to per_group = (training, test) rows of each group among the first n_tokens held-out tokens.

    Groups are known by their names, where the subject's `references` have the rows that this labeller gave before.
    Raises NotApplicableError where no document can be labelled.
    """
    if subject.references is None:
        return _collect(subject, labeller, groups, n_tokens, per_group, tick)
    own = subject.heldout.fingerprint(), subject.seed, labeller, tuple(groups), n_tokens, per_group
    if (kept := subject.references.labelled(own)) is not None:
        tick(kept.n_read)
        return kept
    rows = _collect(subject, labeller, groups, n_tokens, per_group, tick)
    subject.references.keep_labelled(own, rows)
    return rows


def _collect(
    subject: Subject, labeller: Labeller, groups: Groups, n_tokens: int, per_group: tuple[int, int], tick: Tick
) -> LabelledRows:
    samples = {
        (group, split): TokenSample(2, torch_seed(subject.seed, f"labelled {group} {split}"), size)
        for group in groups
        for split, size in zip(SPLITS, per_group, strict=True)
    }
    last = None
    for document, _, labels_NC in labelled_documents(subject, labeller, n_tokens):
        split = SPLITS[int(uniform(subject.seed, document)[0] < TEST_SHARE)]
        where = np.column_stack([np.full(len(labels_NC), document), np.arange(len(labels_NC))])
        for group, belongs in groups.items():
            chosen = torch.from_numpy(where[belongs(labels_NC)])
            samples[group, split].add(chosen, chosen)
        last = document, len(labels_NC) - 1
    if last is None:
        raise NotApplicableError("no held-out document can be labelled (its text is unknown or in another language)")
    wanted = {key: sample.columns().astype(np.int64) for key, sample in samples.items()}
    return _fetch(subject, wanted, last, tick)


def labelled_documents(
    subject: Subject, labeller: Labeller, n_tokens: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number, token ids, labels) of each held-out document that can be labelled, cut where n_tokens were met."""
    parts = with_host(subject)
    last, left = -1, n_tokens
    for batch in parts.tokens.batches(0):
        for number in dict.fromkeys(batch.document_B.tolist()):  # in order; a document's windows are consecutive
            if left == 0:
                return
            if number in (last, -1):
                continue
            last, document = number, parts.tokens.document(number)
            if document is None:
                raise NotApplicableError("the corpus is a stream, whose documents cannot be read again")
            ids = parts.tokens.tokenize.encode([document.text])[0]
            texts = parts.host.token_texts(ids)
            found = labeller(document.text, texts) if "".join(texts) == document.text else None
            if found is not None:
                yield number, np.array(ids[:left]), found[:left]
            left -= min(left, len(texts))


def rows_through(subject: Subject, document: int, position: int) -> Iterator[ActivationBatch]:
    """Held-out rows, batch by batch, until that place has passed, whether its row is there or dropped as an outlier.

    Documents come in the order of `labelled_documents`, each in one piece; where none of its rows are there, the rows
    are read to the end.
    """
    is_met, stream = False, subject.heldout.batches(0)
    try:
        for _, rows in stream:
            yield rows
            is_met = is_met or bool((rows.where_N2[:, 0] == document).any())
            if is_met and len(rows):
                at_document, at_position = rows.where_N2[-1].tolist()
                if at_document != document or at_position >= position:
                    break
    finally:
        stream.close()


def _fetch(
    subject: Subject, wanted: dict[tuple[str, str], np.ndarray], last: tuple[int, int], tick: Tick
) -> LabelledRows:
    """The rows at the places wanted; those that the source drops (outliers) are left out."""
    reach = 1 + max((int(places[:, 1].max()) for places in wanted.values() if len(places)), default=0)
    keys = {name: places[:, 0] * reach + places[:, 1] for name, places in wanted.items()}
    every = np.unique(np.concatenate([*keys.values(), np.zeros(0, np.int64)]))
    found_keys, found_rows, n_read = [], [], 0
    for rows in rows_through(subject, *last):
        where = rows.where_N2.cpu().numpy()
        key = np.where(where[:, 1] < reach, where[:, 0] * reach + where[:, 1], -1)
        here = np.isin(key, every)
        found_keys.append(key[here])
        found_rows.append(rows.x_ND[torch.from_numpy(here).to(rows.x_ND.device)].float().cpu())
        n_read += len(rows)
        tick(len(rows))
    key, x_ND = np.concatenate(found_keys), torch.cat(found_rows)
    order = np.argsort(key)
    members = {name: _rows_of(own, key, order) for name, own in keys.items()}
    return LabelledRows(x_ND, key // reach, members, n_read)


def _rows_of(own: np.ndarray, key: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Where each of `own` is in `key`, without those that are not there."""
    if not len(key):
        return np.zeros(0, np.int64)
    place = np.minimum(np.searchsorted(key[order], own), len(key) - 1)
    rows = order[place]
    return rows[key[rows] == own]
