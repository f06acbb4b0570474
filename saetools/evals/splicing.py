"""Running the host with its activations replaced at the kept tokens of a point, and comparing what it predicts.

Only kept tokens are replaced: BOS and padding keep the host's own vectors, and so do outliers where the held-out rows
are without them, which the dictionary then never saw in training. Predictions count where the token is kept and so is
the next one in its window. Windows are drawn from many documents, the same ones for every dictionary: the first ones
alone could all be of one document.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saetools.evals.base import HostSubject, NotApplicableError, Subject
from saetools.evals.sample import DRAW
from saetools.features.ablation import LOGIT_BYTES
from saetools.features.sampling import uniform
from saetools.lm.base import Edit
from saetools.text.base import TokenBatch
from saetools.text.packing import TokenPlan

MAX_TOKENS = 8192
"""Tokens of one forward pass at most, where the vocabulary is small."""

CHUNK_ROWS = 64
"""Rows of distributions that are worked on at a time: what fits into a core's cache."""

Replacement = Callable[[Tensor], Tensor]
"""x_ND -> the rows that take their place, of the same shape."""


@dataclass(frozen=True)
class Windows:
    """Some windows of a host batch with what is counted of them."""

    ids_BT: Tensor  # int64, on the host's device
    keep_BT: Tensor  # bool: tokens whose activations are replaced (outliers still among them)
    counted_BT: Tensor  # bool: positions whose prediction counts
    document_N: Tensor  # int64, one per counted position
    position_N: Tensor  # int64
    target_N: Tensor  # int64: the next token


def counted_windows(parts: HostSubject, n_predictions: int, n_read: int) -> Iterator[Windows]:
    """Held-out windows with n_predictions to count, a few at a time in the plan's order.

    They are those of least hash among the windows that begin within the first n_read tokens (all, where these hold no
    more predictions), and of the one of greatest hash only the first predictions count, as many as are wanted: batches
    do not matter, nor does the order of documents but for what n_read reaches, in the plan's order, which is fixed.
    The text is tokenized twice. Raises NotApplicableError where there is none to count.
    """
    vocabulary = parts.host.unembedding()[0].shape[0]
    n_tokens = min(LOGIT_BYTES // (4 * vocabulary), MAX_TOKENS)
    n_windows = max(1, n_tokens // parts.tokens.context_tokens)
    drawn = _drawn(parts.tokens, n_predictions, n_read)
    if not drawn:
        raise NotApplicableError("no held-out window has two tokens in a row to predict from; add text")
    waiting = _Waiting()
    for batch in parts.tokens.batches(0):
        if batch.number > max(drawn, default=-1):
            break
        waiting.add(batch, drawn.get(batch.number, []))
        while len(waiting) >= n_windows:
            yield waiting.take(n_windows, parts.host.device)
    if len(waiting):
        yield waiting.take(n_windows, parts.host.device)


def _drawn(plan: TokenPlan, n_predictions: int, n_read: int) -> dict[int, list[tuple[int, int]]]:
    """batch number -> (row, predictions that count) of each window drawn of it. 32 bytes are held per window read."""
    found, read = [], 0
    for batch in plan.batches(0):
        counts_B, n_kept_B = _counted(batch).sum(1), batch.keep_BT.sum(1)
        rows = np.flatnonzero((counts_B > 0) & (read + n_kept_B.cumsum() - n_kept_B < n_read))
        first_B = np.where(batch.keep_BT, batch.position_BT, np.iinfo(np.int64).max).min(1)
        hash_N = uniform(DRAW, batch.document_B[rows], first_B[rows])
        found.append(np.column_stack([hash_N, np.full(len(rows), batch.number), rows, counts_B[rows]]))
        read += int(n_kept_B.sum())
        if read >= n_read:
            break
    table = np.concatenate([np.zeros((0, 4)), *found])
    table = table[np.argsort(table[:, 0], kind="stable")]
    before = table[:, 3].cumsum() - table[:, 3]
    table[:, 3] = np.minimum(table[:, 3], n_predictions - before)
    drawn: dict[int, list[tuple[int, int]]] = {}
    for number, row, n_counted in sorted(table[table[:, 3] > 0, 1:].astype(int).tolist()):
        drawn.setdefault(number, []).append((row, n_counted))
    return drawn


def _counted(batch: TokenBatch) -> np.ndarray:
    """bool [B, T]: kept tokens followed by a kept one."""
    counted_BT = np.zeros_like(batch.keep_BT)
    counted_BT[:, :-1] = batch.keep_BT[:, :-1] & batch.keep_BT[:, 1:]
    return counted_BT


class _Waiting:
    """Windows that were drawn and not yet handed on."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, ...]] = []  # ids, keep, counted, document, position of each window

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, batch: TokenBatch, drawn: list[tuple[int, int]]) -> None:
        """Windows of a batch, given as (row, how many of its first predictions count)."""
        counted_BT = _counted(batch)
        for row, n_counted in drawn:
            counted_T = counted_BT[row] & (counted_BT[row].cumsum() <= n_counted)
            columns = (batch.ids_BT[row], batch.keep_BT[row], counted_T, batch.document_B[row], batch.position_BT[row])
            self._parts.append(columns)

    def take(self, n: int, device: str) -> Windows:
        """The n that wait longest."""
        taken, self._parts = self._parts[:n], self._parts[n:]
        ids_BT, keep_BT, counted_BT, document_B, position_BT = (
            torch.from_numpy(np.stack(column)) for column in zip(*taken, strict=True)
        )
        return Windows(
            ids_BT.to(device),
            keep_BT.to(device),
            counted_BT.to(device),
            document_B[:, None].expand_as(ids_BT)[counted_BT],
            position_BT[counted_BT],
            ids_BT.roll(-1, 1)[counted_BT].to(device),
        )


class Splicer:
    """Runs the subject's host on windows with the rows at its point replaced."""

    def __init__(self, subject: Subject, parts: HostSubject) -> None:
        self.host, self.point, self.dictionary = parts.host, parts.point, parts.dictionary
        limit = subject.heldout.outlier_norm
        self.norm_limit = math.inf if limit is None else limit
        self.n_replaced = 0
        self.n_outliers = 0

    def outliers(self, x_BTD: Tensor) -> Tensor:
        """bool: rows that the held-out rows are without, on the last axis; none where they are all there."""
        return torch.linalg.vector_norm(x_BTD.float(), dim=-1) > self.norm_limit

    def edit(self, windows: Windows, replacement: Replacement) -> Edit:
        """The edit that replaces kept rows which are no outliers."""

        def apply(x_BTD: Tensor) -> Tensor:
            outlier_BT = self.outliers(x_BTD)
            replaced_BT = windows.keep_BT & ~outlier_BT
            self.n_replaced += int(replaced_BT.sum())
            self.n_outliers += int((windows.keep_BT & outlier_BT).sum())
            spliced_BTD = x_BTD.clone()
            spliced_BTD[replaced_BT] = replacement(x_BTD[replaced_BT]).to(x_BTD.dtype)
            return spliced_BTD

        return apply

    def logits(self, windows: Windows, replacement: Replacement | None = None) -> Tensor:
        """logits_NV at the counted positions, with the rows replaced, or the host's own."""
        edits: Mapping[str, Edit] = {} if replacement is None else {self.point: self.edit(windows, replacement)}
        return self.host.logits(windows.ids_BT, edits)[windows.counted_BT]

    def reconstruct(self, x_ND: Tensor, error_term: float = 0.0) -> Tensor:
        """recon + error_term * (x - recon), in float32 on the rows' device."""
        recon_ND = self.dictionary(x_ND.to(self.dictionary.device, torch.float32)).to(x_ND.device)
        return recon_ND + error_term * (x_ND.float() - recon_ND) if error_term else recon_ND


def log_probabilities(logits_NV: Tensor) -> Tensor:
    """float64 log softmax, on the CPU where the device has no float64."""
    logits_NV = logits_NV.cpu() if logits_NV.device.type == "mps" else logits_NV
    return torch.log_softmax(logits_NV.double(), -1)


def cross_entropy_N(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """-log q(target), nats, float64. No float64 copy of all logits is made."""
    parts = []
    for q_RV, target_R in zip(logits_NV.split(CHUNK_ROWS), target_N.split(CHUNK_ROWS), strict=True):
        log_q_RV = log_probabilities(q_RV)
        parts.append(-log_q_RV.gather(1, target_R.to(log_q_RV.device)[:, None])[:, 0])
    return torch.cat(parts)


def kl_N(logits_p_NV: Tensor, logits_q_NV: Tensor) -> Tensor:
    """KL(p || q) = sum_v p (log p - log q), nats, float64; a token with p = 0 adds 0. Memory as above."""
    parts = []
    for p_RV, q_RV in zip(logits_p_NV.split(CHUNK_ROWS), logits_q_NV.split(CHUNK_ROWS), strict=True):
        log_p_RV, log_q_RV = log_probabilities(p_RV), log_probabilities(q_RV)
        p_RV = log_p_RV.exp()
        parts.append(torch.where(p_RV > 0, p_RV * (log_p_RV - log_q_RV), 0.0).sum(-1))
    return torch.cat(parts)
