"""How well features steer: what adding one does to the tokens it speaks for, and what it costs elsewhere.

For a sample of living features, a vector along the feature's atom d (along -d, for signed codes, where the feature's
code sums to less than 0 over the predictions judged), of norm `dose` times the median row norm, is added to every kept
token of some held-out windows. Judged are the predictions at tokens where the feature does not fire.
Targets are the tokens that d raises most on the direct path to the logits (features/effects.py).

    on_target        mean over positions and targets of log q'(target) - log q(target), nats (q' steered, q original)
    off_target       mean over positions of KL(q || q') over the other tokens, each renormalised without the targets
    steering_area    mean over features of (1/K) * integral of on_target over off_target from 0 to K = `kl_limit` nats:
                     the curve over doses, from (0, 0), linear between doses and flat beyond the last
    class_steering_area   the same with a labelled class for target, over living features that announce one
                     (token_classes.py), drawn apart: on-target ln P'(class) - ln P(class) nats, off-target the KL
                     without its tokens
    logit_influence  mean over features of RMS over positions of ||centred logit change|| / ||vector|| at the least
                     dose: how strongly features move logits in arbitrary contexts, which gradient SAEs claim to win
                     (Olmo et al. 2024, arXiv 2411.10397; their own definition is not public)
    perplexity_cost  mean over features of the rise of next-token loss at the least dose, nats
    attribution_correlation  over `n_attributed` features, rank correlation (Spearman) of the true change of the text's
                     loss when the feature is ablated with the first-order estimate - sum over tokens of
                     a <d, gradient of the loss>; by ranks, since one feature of great effect decides Pearson's

Living are here the features that fire at some of the `n_predictions` and not at all of them: the more frequent ones
(of 384 predictions of the embedded host, 2,614 of 4,067 that live, of 1.5 times the median density of all).

Controls, with vectors of equal norm: `..._random` (random directions, judged by their own top tokens) and
`..._shuffled` (another feature's atom, judged by this feature's targets). Intervals are over features, 8 or more.

Cost: 3 x doses forward passes per feature steered and 1 per feature ablated, over `n_predictions` tokens, one backward
pass, one pass of the host to the point over `n_class_tokens`. Cannot tell: whether generated text stays sensible; nor
whether a feature's meaning is that of its top tokens. Nor does steering_area tell features from random directions: each
is judged by the tokens that its own product with the unembedding raises, and any direction raises its own (random ones
had the higher area in 51 of 54 dictionaries of the comparison, features the higher one than shuffled in all). What a
feature does beyond a random direction is in class_steering_area, whose targets are not made from the direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor

from saetools.evals.base import (
    EvalRecord,
    Evaluation,
    HostSubject,
    NotApplicableError,
    Subject,
    Tick,
    no_tick,
    with_host,
)
from saetools.evals.bootstrap import correlation_interval, too_few
from saetools.evals.probes import Firings, encode_rows
from saetools.evals.responses import area_under, response_columns
from saetools.evals.splicing import Splicer, counted_windows, cross_entropy_N
from saetools.evals.token_classes import read_token_classes
from saetools.features.effects import logit_effects
from saetools.features.steering import FeatureEdit
from saetools.functional.ranking import ranks
from saetools.rng import generator

UNITS = {
    "steering_area": "nats",
    "class_steering_area": "nats",
    "logit_influence": "logits per unit of activation",
    "perplexity_cost": "nats per token",
}


class Steering(Evaluation, name="steering"):
    """Dose and response of adding features, against random and shuffled directions; ablation against attribution."""

    needs_host = True
    cost = "3 x doses forward passes per feature over a few windows"

    class Config(Evaluation.Config):
        """Sizes."""

        n_features: int = Field(12, gt=1, description="living features steered, drawn at random")
        n_class_features: int = Field(
            8, ge=0, description="further ones, drawn at random of those that announce a class"
        )
        n_attributed: int = Field(48, gt=1, description="living features ablated, those steered among them")
        n_predictions: int = Field(384, gt=0, description="held-out predictions on which each dose is judged")
        n_read_tokens: int = Field(200_000, gt=0, description="held-out tokens from which their windows are drawn")
        doses: tuple[PositiveFloat, ...] = Field(
            (0.1, 0.3, 0.9), min_length=1, description="norms added, in median row norms, ascending"
        )
        n_targets: int = Field(10, gt=0, description="top tokens of a direction that count as its targets")
        kl_limit: float = Field(1.0, gt=0, description="K, the off-target cost in nats up to which effects count")
        n_class_tokens: int = Field(20_000, ge=0, description="held-out tokens read for classes; 0: no class targets")
        least_rise: float = Field(0.3, gt=0, le=1, description="in probability of the class that a feature announces")

        @field_validator("doses")
        @classmethod
        def _ascending(cls, doses: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(sorted(doses))

    config: Config

    def missing(self, subject: Subject) -> str | None:
        if (reason := super().missing(subject)) is not None:
            return reason
        parts = with_host(subject)
        if parts.host.in_stream(parts.point):
            return None
        return (
            f"{parts.point} is not of the residual stream, so that no direction there has tokens that it should raise"
        )

    @torch.no_grad()
    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        parts = with_host(subject)
        bench = _Bench(subject, parts, self.config)
        chosen = [(feature, None) for feature in bench.living[: self.config.n_features]]
        curves = self._curves(bench, chosen, tick)
        of_class = self._curves(bench, self._announcing(subject, parts, bench.living), tick)
        records = [
            record for name in curves for record in self._of_curves(name, curves[name], of_class[name], subject.seed)
        ]
        return [*records, self._attribution(bench)]

    def _curves(
        self, bench: "_Bench", chosen: Sequence[tuple[int, Tensor | None]], tick: Tick
    ) -> "dict[str, list[_Curve]]":
        """Control ("" for none) -> the response to each (feature, class to aim at)."""
        curves: dict[str, list[_Curve]] = {"": [], "_random": [], "_shuffled": []}
        directions = self._directions(bench, [feature for feature, _ in chosen])
        for (feature, class_V), vectors in zip(chosen, directions, strict=True):
            for name, (direction_D, speaks_for_D) in vectors.items():
                aim = _Aim(bench.targets(speaks_for_D, self.config.n_targets), class_V, bench.silent(feature))
                curves[name].append(bench.curve(direction_D, aim, self.config.doses, tick))
        return curves

    def _directions(self, bench: "_Bench", features: Sequence[int]) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """Of each feature: control -> (direction steered along, direction whose top tokens are the targets); norm 1."""
        atoms_FD = bench.directions_FD
        numbers = generator(bench.subject.seed, "steering controls")
        random_FD = torch.from_numpy(numbers.normal(size=(len(features), atoms_FD.shape[1])))
        random_FD = torch.nn.functional.normalize(random_FD.to(atoms_FD), dim=1)
        found = []
        for feature, random_D in zip(features, random_FD, strict=True):
            place = bench.living.index(feature)
            other_D, own_D = atoms_FD[bench.living[(place + 1) % len(bench.living)]], atoms_FD[feature]
            found.append({"": (own_D, own_D), "_random": (random_D, random_D), "_shuffled": (other_D, own_D)})
        return found

    def _announcing(self, subject: Subject, parts: HostSubject, living: Sequence[int]) -> list[tuple[int, Tensor]]:
        """The first of `living` that announce a class, with P(class | token) [V] of it."""
        n_vocabulary = parts.host.unembedding()[0].shape[0]
        try:
            classes = read_token_classes(subject, self.config.n_class_tokens, n_vocabulary)
        except NotApplicableError:  # a stream, whose documents cannot be labelled
            return []
        if not classes.labels:
            return []
        names = classes.announced(subject, living, self.config.least_rise)
        found = [(feature, name) for feature, name in zip(living, names, strict=True) if name is not None]
        return [(feature, classes.members(name)) for feature, name in found[: self.config.n_class_features]]

    def _of_curves(self, suffix: str, curves: "list[_Curve]", of_class: "list[_Curve]", seed: int) -> list[EvalRecord]:
        limit = self.config.kl_limit
        figures = {
            "steering_area": [area_under(c.off_target, c.on_target, limit) for c in curves],
            "class_steering_area": [area_under(c.class_off, c.class_on, limit) for c in of_class],
            "logit_influence": [c.influence for c in curves],
            "perplexity_cost": [c.loss_added[0] for c in curves],
        }
        mean_curve = {
            "dose": list(self.config.doses),
            **{
                name: np.mean([getattr(c, name) for c in curves], 0).tolist()
                for name in ("on_target", "off_target", "loss_added")
            },
        }
        return [
            self.mean_record(
                f"{name}{suffix}",
                values,
                UNITS[name],
                "features",
                seed,
                series=mean_curve if name == "steering_area" else None,
                note=None if values else "no living feature announces a labelled class",
            )
            for name, values in figures.items()
        ]

    def _attribution(self, bench: "_Bench") -> EvalRecord:
        pairs = np.array([bench.ablation(feature) for feature in bench.living[: self.config.n_attributed]])
        ranked = np.stack([ranks(column) for column in pairs.T], 1)
        varies = len(pairs) > 2 and (pairs.std(0) > 0).all()
        return self.record(
            "attribution_correlation",
            float(np.corrcoef(ranked.T)[0, 1]) if varies else None,
            "rank correlation",
            len(pairs),
            n_unit="features",
            spread=correlation_interval(ranked, bench.subject.seed) if varies else None,
            note=too_few(len(pairs), "features") if varies else None,
            series={"loss_change": pairs[:, 0].tolist(), "first_order": pairs[:, 1].tolist()},
        )


@dataclass(frozen=True)
class _Aim:
    """What a direction is judged by, and where."""

    targets_J: Tensor
    class_V: Tensor | None
    silent: Tensor


@dataclass(frozen=True)
class _Curve:
    """Response to each dose; no class response where there is no class to aim at."""

    on_target: list[float]
    off_target: list[float]
    loss_added: list[float]
    influence: float  # RMS centred logit change per unit of norm, at the least dose
    class_on: list[float]
    class_off: list[float]


class _Bench:
    """The windows on which everything is tried, with the host's own predictions there."""

    def __init__(self, subject: Subject, parts: HostSubject, config: Steering.Config) -> None:
        self.subject, self.parts, self.splicer = subject, parts, Splicer(subject, parts)
        self.windows = list(counted_windows(parts, config.n_predictions, config.n_read_tokens))
        self.logits = [self.splicer.logits(w).float() for w in self.windows]
        self.median_norm = subject.heldout.calibration.median_norm
        self.W_U_VD, self.norm_weight_D = (
            None if part is None else part.to(subject.dictionary.device) for part in parts.host.unembedding()
        )

    @cached_property
    def fires(self) -> Firings:
        """The code at the counted predictions; none at outliers, which are not steered and would outweigh all else."""
        point = self.parts.point
        x_ND = torch.cat([self.parts.host.activations(w.ids_BT, [point])[point][w.counted_BT] for w in self.windows])
        coded_M = torch.nonzero(~self.splicer.outliers(x_ND))[:, 0]
        found = encode_rows(self.subject.dictionary, x_ND[coded_M].float())
        return replace(found, row_M=coded_M.cpu()[found.row_M], n_rows=len(x_ND))

    @cached_property
    def directions_FD(self) -> Tensor:
        """float32, unit norm: what each feature adds to the reconstruction, of the sign of its summed code."""
        code = torch.zeros(self.subject.dictionary.config.n_features, dtype=torch.float64)
        code.index_add_(0, self.fires.feature_M, self.fires.value_M)
        atoms_FD = torch.nn.functional.normalize(self.subject.dictionary.directions().float(), dim=1)
        return torch.where(code[:, None].to(atoms_FD.device) < 0, -atoms_FD, atoms_FD)

    @cached_property
    def living(self) -> list[int]:
        """Features that fire at some predictions and not at all, in random order; two at least."""
        n_rows = self.fires.n_rows
        features, n_with = torch.unique(self.fires.feature_M, return_counts=True)
        living = (
            generator(self.subject.seed, "steering features").permutation(features[n_with < n_rows].numpy()).tolist()
        )
        if len(living) < 2:
            raise NotApplicableError(
                f"{len(living)} features fire at some of the {n_rows:,} predictions but not at every one, and two are "
                "needed; raise n_predictions"
            )
        return living

    def silent(self, feature: int) -> Tensor:
        """bool [N]: predictions at tokens where the feature does not fire."""
        silent_N = torch.ones(self.fires.n_rows, dtype=torch.bool)
        silent_N[self.fires.row_M[self.fires.of_feature(feature)]] = False
        return silent_N

    def targets(self, direction_D: Tensor, n: int) -> Tensor:
        """The tokens that a direction raises most."""
        assert self.W_U_VD is not None
        return logit_effects(direction_D[None], self.W_U_VD, self.norm_weight_D, n).top_tokens_FJ[0]

    def curve(self, direction_D: Tensor, aim: "_Aim", doses: tuple[float, ...], tick: Tick) -> _Curve:
        """The response at each dose, averaged over the positions where the feature is silent."""
        responses = []
        for dose in doses:
            vector_D = (dose * self.median_norm * direction_D).to(self.parts.host.device)
            columns, first = [], 0
            for w, logits_NV in zip(self.windows, self.logits, strict=True):
                here = aim.silent[first : first + len(w.target_N)].to(logits_NV.device)
                steered_NV = self.splicer.logits(w, _adding(vector_D))[here].float()
                columns.append(
                    response_columns(logits_NV[here], steered_NV, aim.targets_J, w.target_N[here], aim.class_V)
                )
                first += len(w.target_N)
                tick(len(w.target_N))
            responses.append(torch.cat(columns).mean(0).tolist())
        on_target, off_target, loss_added, square, *of_class = (list(column) for column in zip(*responses, strict=True))
        influence = square[0] ** 0.5 / (doses[0] * self.median_norm)
        return _Curve(on_target, off_target, loss_added, influence, *(of_class or ([], [])))

    @cached_property
    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """(x_BTD, gradient_BTD) per window batch: of the sum of the counted predictions' losses."""
        found = []
        for w in self.windows:
            targets_BT = torch.zeros_like(w.counted_BT)
            targets_BT[:, 1:] = w.counted_BT[:, :-1]
            point = self.parts.point
            found.append(self.parts.host.activations_and_gradients(w.ids_BT, [point], targets_BT)[point])
        return found

    def ablation(self, feature: int) -> tuple[float, float]:
        """(true, first-order) change of the summed next-token loss of all windows when the feature is ablated."""
        edit = FeatureEdit(self.subject.dictionary, feature, "ablate")

        def ablate(x_ND: Tensor) -> Tensor:
            return edit(x_ND[None])[0]

        true = estimate = 0.0
        for w, logits_NV, (x_BTD, g_BTD) in zip(self.windows, self.logits, self.gradients, strict=True):
            before = cross_entropy_N(logits_NV, w.target_N)
            after = cross_entropy_N(self.splicer.logits(w, ablate), w.target_N)
            true += float((after - before).sum())
            replaced_BT = w.keep_BT & ~self.splicer.outliers(x_BTD)
            x_ND, g_ND = x_BTD[replaced_BT], g_BTD[replaced_BT]
            estimate += float(((ablate(x_ND) - x_ND).cpu().double() * g_ND.cpu().double()).sum())
        return true, estimate


def _adding(vector_D: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x_ND: x_ND + vector_D.to(x_ND.dtype)
