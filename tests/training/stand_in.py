"""What `DeviceStep` does, by the plain reference kernels on the CPU: to test what is built on it without its price.

`tests/kernels/test_triton.py` holds the real one to the same steps.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from saetools.functional.statistics import least_positive
from saetools.kernels.auxk import auxk
from saetools.kernels.backward_adam import Batch, Rule, Weights, backward_adam
from saetools.kernels.decode_loss import decode_loss
from saetools.kernels.encode_topk import encode_topk
from saetools.kernels.global_topk import global_topk
from saetools.kernels.sparse import Sparse
from saetools.kernels.topk_step import StepRecord, StepSettings
from saetools.kernels.topk_step.triton import Mark


class StandIn:
    """The interface of DeviceStep that the trainer uses."""

    graph = None

    def __init__(
        self,
        weights: Weights,
        first: Weights,
        second: Weights,
        since_F: Tensor,
        settings: StepSettings,
        n_rows: int,
        n_steps: int = 0,
        row_dtype: torch.dtype | None = None,
    ) -> None:
        assert settings.clip == "exact" and row_dtype == torch.float32
        self.weights, self.first, self.second, self.since_F = weights, first, second, since_F
        self.settings, self.n_steps = settings, n_steps
        self.x_ND = torch.full((n_rows, weights.W_dec_FD.shape[1]), torch.nan)
        self.rates: list[float] = []
        self.told: list[StepRecord] = []
        self.n_told = 0
        self.threshold, self.missed = 0.0, False  # of a selection over the batch, which has a guess of the next

    def set_rates(self, rates: Sequence[float]) -> None:
        self.rates = list(rates)

    def load(self, x_ND: Tensor) -> None:
        assert x_ND.shape == self.x_ND.shape
        self.x_ND.copy_(x_ND)

    def launch(self) -> None:
        w, s, x = self.weights, self.settings, self.x_ND
        N = len(x)
        dead_A = (self.since_F >= s.dead_after).nonzero()[:, 0]
        centred = x - w.b_dec_D
        if s.selection == "global":
            code, threshold = global_topk(centred, w.W_enc_FD, w.b_enc_F, s.k * N, impl="reference")
            self.missed |= threshold < s.guess * self.threshold
        else:
            code = Sparse.fixed(*encode_topk(centred, w.W_enc_FD, w.b_enc_F, s.k, impl="reference"))
        values, indices = code.values_M, code.indices_M
        loss_NG, pull, dots = decode_loss(x, code, w.W_dec_FD, w.b_dec_D, impl="reference")
        matrices = (centred, pull[:, 0], w.W_enc_FD, w.b_enc_F, w.W_dec_FD)
        aux, extra = auxk(*matrices, dead_A, s.aux_k, s.aux_weight, impl="reference")
        flagged = len(dead_A) > s.capacity or self.missed
        loss, norm = float(loss_NG.sum() / N / s.variance), float("nan")
        if not flagged and torch.isfinite(torch.tensor(loss)):
            rule = Rule(self.rates.pop(0), self.n_steps, s.clip_norm, s.betas, s.eps)
            batch = Batch(centred, code, pull, dots, 2 / (N * s.variance))
            norm = backward_adam(w, self.first, self.second, batch, rule, extra, impl="reference")
        if applied := norm < float("inf"):
            self.n_steps += 1
            self.threshold = float(least_positive(values))
            fired = torch.zeros_like(self.since_F, dtype=torch.bool)
            fired[indices[values > 0].long()] = True
            self.since_F.copy_(torch.where(fired, 0, self.since_F + N))
        n_dead = int((self.since_F >= s.dead_after).sum())
        l0 = float((values > 0).sum() / N)
        self.told.append(
            StepRecord(loss, float(aux), l0, n_dead, norm, applied, 0, flagged, float(least_positive(values)))
        )

    def mark(self) -> Mark:
        return Mark(self.n_told + len(self.told), self.x_ND, self.since_F.clone(), None)

    def read(self, mark: Mark | None = None) -> list[StepRecord]:
        n = len(self.told) if mark is None else mark.n_launched - self.n_told
        told, self.told = self.told[:n], self.told[n:]
        self.n_told += n
        return told

    @contextmanager
    def exactly(self) -> Iterator[None]:
        settings, self.missed = self.settings, False
        self.settings = replace(settings, capacity=len(self.since_F), guess=0.0)
        try:
            yield
        finally:
            self.settings = settings
