"""What the host's predictions lose when the dictionary's reconstruction stands in for its activations.

The host runs with the rows at the point replaced by recon ("spliced"), by 0 ("zero"), by their mean over held-out rows
("mean"), or not at all ("original"). Per counted prediction (splicing.py says which count), in nats:

    ce_<run>          mean of -log q(next token)
    kl_<run>          mean of KL(original || run)
    ce_recovered_zero = (ce_zero - ce_spliced) / (ce_zero - ce_original);  ce_recovered_mean likewise
    kl_recovered_zero = 1 - kl_spliced / kl_zero;                          kl_recovered_mean likewise

Windows are drawn by hash from the first `n_read_tokens` held-out tokens (in the plan's order, which is fixed), the same
for every dictionary and seed, so that few predictions are still of many documents. 1 is no loss, 0 is as bad as the
ablation; where the ablation does not raise the loss there is nothing to recover, and the note says so. Zero-ablation is
the field's reference (SAEBench, dictionary_learning); the mean is the stricter one.
Numerators and denominators are sums over all predictions. `error_term` puts that share of x - recon back: at 1 the
spliced run is the original. `ce_spliced` carries quantiles of the loss added per token (over a uniform sample of 65,536
predictions) and the worst ones.

Cost: four forward passes of the host per token, and one to the point for the mean; where the subject carries
references (references.py), one pass for every dictionary but the first. Cannot tell: whether the features
that matter were the ones rebuilt; predictions of other points; anything about generation.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetools.evals.base import (
    EvalRecord,
    Evaluation,
    HostSubject,
    Subject,
    Tick,
    no_tick,
    with_host,
)
from saetools.evals.bootstrap import DocumentSums, Statistic
from saetools.evals.references import Reference, References
from saetools.evals.sample import TokenSample
from saetools.evals.splicing import (
    Replacement,
    Splicer,
    Windows,
    counted_windows,
    cross_entropy_N,
    kl_N,
)

WITHOUT = ("tokens", "ce_original", "ce_zero", "ce_mean", "kl_zero", "kl_mean")
"""Columns that know nothing of the dictionary."""
COLUMNS = (*WITHOUT, "ce_spliced", "kl_spliced")
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


class LossRecovered(Evaluation, name="loss_recovered"):
    """Cross entropy and KL under splicing, against zero- and mean-ablation."""

    needs_host = True
    cost = "four forward passes of the host per token, and one to the point"

    class Config(Evaluation.Config):
        """How much text, and what is spliced."""

        n_tokens: int = Field(50_000, gt=0, description="held-out predictions to count; fewer where there are fewer")
        n_read_tokens: int = Field(200_000, gt=0, description="held-out tokens from which their windows are drawn")
        n_mean_tokens: int = Field(200_000, gt=0, description="held-out rows whose mean the mean-ablation puts in")
        error_term: float = Field(0.0, ge=0, le=1, description="share of the reconstruction error that is put back")
        n_worst: int = Field(20, ge=0, description="tokens named that lose most")

    config: Config

    @property
    def n_tokens(self) -> int:
        return self.config.n_tokens

    @torch.no_grad()
    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        parts = with_host(subject)
        splicer = Splicer(subject, parts)
        sums, added = DocumentSums(len(COLUMNS)), _Added(subject.seed, self.config.n_worst)
        key = (subject.heldout.fingerprint(), self.config.model_copy(update={"error_term": 0.0}))
        for reference in (subject.references or References(0, 0)).read(key, lambda: self._without(subject, parts)):
            columns_NC = self._with(splicer, reference)
            sums.add(reference.windows.document_N, columns_NC)
            added.add(reference.windows, columns_NC[:, -2] - columns_NC[:, 1])
            tick(len(columns_NC))
        return self._records(subject, sums, added, parts, splicer)

    def _without(self, subject: Subject, parts: HostSubject) -> Iterator[Reference]:
        """The windows with the host's own run, the zero- and the mean-ablation."""
        splicer = Splicer(subject, parts)
        mean_D = mean_row(subject, self.config.n_mean_tokens).to(parts.host.device)
        ablations: tuple[Replacement, ...] = (torch.zeros_like, lambda x_ND: mean_D.to(x_ND.dtype).expand_as(x_ND))
        for windows in counted_windows(parts, self.config.n_tokens, self.config.n_read_tokens):
            logits_NV = splicer.logits(windows)
            ce, kl = [cross_entropy_N(logits_NV, windows.target_N)], []
            for ablation in ablations:
                ablated_NV = splicer.logits(windows, ablation)
                ce.append(cross_entropy_N(ablated_NV, windows.target_N))
                kl.append(kl_N(logits_NV, ablated_NV))
            yield Reference(windows, logits_NV, torch.stack([torch.ones_like(ce[0]), *ce, *kl], 1).cpu())

    def _with(self, splicer: Splicer, reference: Reference) -> Tensor:
        """float64 [N, 8] in the order of COLUMNS."""
        windows, logits_NV = reference.windows, reference.logits_NV
        logits_NV = splicer.logits(windows) if logits_NV is None else logits_NV
        spliced_NV = splicer.logits(windows, lambda x_ND: splicer.reconstruct(x_ND, self.config.error_term))
        own = [cross_entropy_N(spliced_NV, windows.target_N), kl_N(logits_NV, spliced_NV)]
        return torch.cat([reference.columns_NC, torch.stack(own, 1).cpu()], 1)

    def _records(
        self, subject: Subject, sums: DocumentSums, added: "_Added", parts: HostSubject, splicer: Splicer
    ) -> list[EvalRecord]:
        outliers = splicer.n_outliers / max(splicer.n_outliers + splicer.n_replaced, 1)
        kept = f"{outliers:.2%} of tokens are outliers and kept their activations" if outliers else None
        notes = {"ce_spliced": added.worst_text(parts), "ce_recovered_zero": kept}
        totals = dict(zip(COLUMNS, sums.totals(), strict=True))
        for ablation in ("zero", "mean"):
            if totals[f"ce_{ablation}"] <= totals["ce_original"]:
                name = f"ce_recovered_{ablation}"
                nothing = f"{ablation}-ablation does not raise the loss here, so that this is no fraction of anything"
                notes[name] = "; ".join(filter(None, [notes.get(name), nothing]))
        records = []
        for name, statistic in _statistics().items():
            fields: dict[str, Any] = {"series": added.series()} if name == "ce_spliced" else {}
            records.append(
                self.sums_record(
                    name,
                    sums,
                    statistic,
                    "fraction recovered" if "recovered" in name else "nats per token",
                    subject.seed,
                    note=notes.get(name),
                    **fields,
                )
            )
        return records


def _statistics() -> dict[str, Statistic]:
    """Each figure from the sums of COLUMNS."""

    def mean(name: str) -> Statistic:
        return lambda totals: totals[:, COLUMNS.index(name)] / totals[:, 0]

    def ce_recovered(reference: str) -> Statistic:
        original, spliced, ablated = (COLUMNS.index(f"ce_{run}") for run in ("original", "spliced", reference))
        return lambda totals: (totals[:, ablated] - totals[:, spliced]) / (totals[:, ablated] - totals[:, original])

    def kl_recovered(reference: str) -> Statistic:
        spliced, ablated = (COLUMNS.index(f"kl_{run}") for run in ("spliced", reference))
        return lambda totals: 1 - totals[:, spliced] / totals[:, ablated]

    recovered = {
        f"{kind}_recovered_{reference}": formula(reference)
        for kind, formula in (("ce", ce_recovered), ("kl", kl_recovered))
        for reference in ("zero", "mean")
    }
    return {name: mean(name) for name in COLUMNS[1:]} | recovered


@torch.no_grad()
def mean_row(subject: Subject, n_rows: int) -> Tensor:
    """float32 [D]: the mean of the first n_rows held-out rows, summed in float64."""
    total, left = torch.zeros(subject.spec.d_model, dtype=torch.float64), n_rows
    stream = subject.heldout.batches(0)
    try:
        for _, rows in stream:
            rows = rows.select(slice(0, left))
            total += rows.x_ND.cpu().double().sum(0)
            left -= len(rows)
            if left == 0:
                break
    finally:
        stream.close()
    return (total / max(n_rows - left, 1)).float()


class _Added:
    """The loss added per token: a uniform sample of it, and the tokens that lose most, in bounded memory."""

    def __init__(self, seed: int, n_worst: int) -> None:
        self.sample, self.n_worst = TokenSample(1, seed), n_worst
        self.worst = np.zeros((0, 4))  # loss added, document, position, target

    def add(self, windows: Windows, added_N: Tensor) -> None:
        self.sample.add(torch.stack([windows.document_N, windows.position_N], 1), added_N[:, None])
        columns = [added_N, windows.document_N, windows.position_N, windows.target_N.cpu()]
        worst = np.concatenate([self.worst, np.column_stack([column.double().numpy() for column in columns])])
        self.worst = worst[np.lexsort((worst[:, 2], worst[:, 1], -worst[:, 0]))][: self.n_worst]

    def series(self) -> dict[str, list[float]]:
        return {
            "quantile": list(QUANTILES),
            "nats_added": self.sample.quantiles(0, QUANTILES),
            "worst_nats_added": self.worst[:, 0].tolist(),
            "worst_document": self.worst[:, 1].tolist(),
            "worst_position": self.worst[:, 2].tolist(),
            "worst_next_token": self.worst[:, 3].tolist(),
        }

    def worst_text(self, parts: HostSubject) -> str | None:
        """The three worst tokens in words."""
        named = [
            f"{parts.host.token_texts([int(target)])[0]!r} after token {int(position)} of "
            f"{parts.tokens.document_id(int(document))} (+{added:.2f})"
            for added, document, position, target in self.worst[:3]
        ]
        return f"loses most predicting {', '.join(named)}" if named else None
