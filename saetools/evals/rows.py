"""Evaluations that look at rows one after another: they share one pass over the held-out rows."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.base import SparseCode
from saetools.errors import DataError
from saetools.evals.base import EvalRecord, Evaluation, Subject, Tick, no_tick

ROUNDING = 1e-11
"""What sums of a million equal rows may be off by, of themselves (3e-12 was seen over 200,000)."""


def scatter(square_R: np.ndarray, sum_RD: np.ndarray, n_R: np.ndarray) -> np.ndarray:
    """sum ||x - mean||^2 = sum ||x||^2 - ||sum x||^2 / N, of each R; nan where it is no more than rounding."""
    scatter_R = square_R - np.square(sum_RD).sum(1) / n_R
    return np.where(scatter_R > ROUNDING * square_R, scatter_R, np.nan)


@dataclass(frozen=True)
class CodedRows:
    """Held-out rows with what the dictionary makes of them."""

    x_ND: Tensor  # float32, raw
    code: SparseCode
    recon_ND: Tensor  # float32
    where_N2: Tensor  # int64 (document number, position in the document), on the CPU


class RowTally(Protocol):
    """What a row evaluation gathers while rows pass."""

    def add(self, rows: CodedRows) -> None:
        """Take in a batch of coded rows."""
        ...

    def records(self) -> list[EvalRecord]:
        """The figures over all rows that were added."""
        ...


class RowEvaluation(Evaluation):
    """An evaluation that is a tally over rows: the same figures whether it runs alone or beside others."""

    class Config(Evaluation.Config):
        """What all tallies share."""

        n_tokens: int = Field(200_000, gt=0, description="held-out rows to read; fewer where there are fewer")

    config: Config

    @abstractmethod
    def start(self, subject: Subject) -> RowTally:
        """An empty tally."""

    @property
    def n_tokens(self) -> int:
        return self.config.n_tokens

    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        return run_together([self], subject, tick)[0]


def run_together(
    evaluations: Sequence[RowEvaluation], subject: Subject, tick: Tick = no_tick
) -> list[list[EvalRecord]]:
    """The figures of each evaluation from one pass over the rows; all have the same `n_tokens`."""
    (n_tokens,) = {evaluation.config.n_tokens for evaluation in evaluations}
    tallies = [evaluation.start(subject) for evaluation in evaluations]
    for rows in coded_rows(subject, n_tokens):
        for tally in tallies:
            tally.add(rows)
        tick(len(rows.x_ND))
    return [tally.records() for tally in tallies]


@torch.no_grad()
def coded_rows(subject: Subject, n_rows: int) -> Iterator[CodedRows]:
    """The first n_rows held-out rows, encoded and decoded, in the source's batches. DataError where there are none."""
    dictionary, left = subject.dictionary, n_rows
    stream = subject.heldout.batches(0)
    try:
        for _, batch in stream:
            batch = batch.select(slice(0, left))
            if len(batch):
                x_ND = batch.x_ND.to(dictionary.device, torch.float32)
                code = dictionary.encode(x_ND, {name: f.to(x_ND.device) for name, f in batch.fields.items()})
                yield CodedRows(x_ND, code, dictionary.decode(code).float(), batch.where_N2.cpu())
                left -= len(batch)
            if left == 0:
                break
    finally:
        stream.close()
    if left == n_rows:
        raise DataError("The held-out split gave no rows, so there is nothing to evaluate on. Add held-out documents.")
