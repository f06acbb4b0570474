"""Running the host with its activations replaced at the kept tokens of a point, and comparing what it predicts.

Only kept tokens are replaced: BOS and padding keep the host's own vectors, and so do outliers, which the dictionary
never saw in training. Predictions count where the token is kept and so is the next one in its window.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saetools.activations.calibration import OUTLIER_FACTOR
from saetools.evals.base import HostSubject, Subject
from saetools.lm.base import Edit
from saetools.text.base import TokenBatch

LOGIT_BYTES = 256 << 20
"""Logits of one forward pass at most (float32); windows are run a few at a time where the vocabulary is large."""

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


def counted_windows(parts: HostSubject, n_predictions: int) -> Iterator[Windows]:
    """The held-out windows, a few at a time, until n_predictions are counted; the last are cut to that number."""
    vocabulary = parts.host.unembedding()[0].shape[0]
    left = n_predictions
    for batch in parts.tokens.batches(0):
        n_windows = max(1, LOGIT_BYTES // (4 * vocabulary * batch.ids_BT.shape[1]))
        for start in range(0, len(batch.ids_BT), n_windows):
            windows = _windows(batch, slice(start, start + n_windows), left, parts.host.device)
            if len(windows.target_N):
                left -= len(windows.target_N)
                yield windows
            if left == 0:
                return


def _windows(batch: TokenBatch, rows: slice, limit: int, device: str) -> Windows:
    """Those of the rows that have a counted position; the first `limit` predictions count."""
    ids_BT, keep_BT = torch.from_numpy(batch.ids_BT[rows]), torch.from_numpy(batch.keep_BT[rows])
    counted_BT = torch.zeros_like(keep_BT)
    counted_BT[:, :-1] = keep_BT[:, :-1] & keep_BT[:, 1:]
    counted_BT &= (counted_BT.flatten().cumsum(0) <= limit).view_as(counted_BT)
    document_BT = torch.from_numpy(batch.document_B[rows])[:, None].expand_as(ids_BT)
    has_any_B = counted_BT.any(1)
    return Windows(
        ids_BT[has_any_B].to(device),
        keep_BT[has_any_B].to(device),
        counted_BT[has_any_B].to(device),
        document_BT[counted_BT],
        torch.from_numpy(batch.position_BT[rows])[counted_BT],
        ids_BT.roll(-1, 1)[counted_BT].to(device),
    )


class Splicer:
    """Runs the subject's host on windows with the rows at its point replaced."""

    def __init__(self, subject: Subject, parts: HostSubject) -> None:
        self.host, self.point, self.dictionary = parts.host, parts.point, parts.dictionary
        self.norm_limit = OUTLIER_FACTOR * subject.heldout.calibration.median_norm
        self.n_replaced = 0
        self.n_outliers = 0

    def edit(self, windows: Windows, replacement: Replacement) -> Edit:
        """The edit that replaces kept rows which are no outliers."""

        def apply(x_BTD: Tensor) -> Tensor:
            outlier_BT = torch.linalg.vector_norm(x_BTD.float(), dim=-1) > self.norm_limit
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


def cross_entropy_N(log_q_NV: Tensor, target_N: Tensor) -> Tensor:
    """-log q(target), nats."""
    return -log_q_NV.gather(1, target_N.to(log_q_NV.device)[:, None])[:, 0]


def kl_N(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p || q) = sum_v p (log p - log q), nats; a token with p = 0 adds 0."""
    p_NV = log_p_NV.exp()
    return torch.where(p_NV > 0, p_NV * (log_p_NV - log_q_NV), 0.0).sum(-1)
