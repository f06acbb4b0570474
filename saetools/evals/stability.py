"""Do other dictionaries of the same activations find the same features? (Other seeds, kinds, sizes.)

The atoms of this dictionary and of each other one are paired one to one by cosine (Hungarian); by |cosine| where the
codes of either are signed, so that its atoms may point either way. Per other dictionary:

    matched_cosine       mean cosine of the pairs
    shared_features      share of this dictionary's features whose partner has a cosine of at least `shared_at`;
                         features without a partner (the other is smaller) count as not shared
    nearest_cosine       mean over features of the greatest cosine with any atom of the other, several to one allowed

and each again as `..._chance`, with the other's atoms replaced by random ones of the same second moment. Figures are
means over the others, each counting the same whatever its size; the series hold each. Intervals resample this
dictionary's features, of which n enter (those with a partner in any other, for matched_cosine).

Cost: one assignment per other (seconds at 4,096 features, minutes at 16,384); no data. Cannot tell: whether features
with similar atoms fire on the same tokens.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.errors import MismatchError
from saetools.evals.base import EvalRecord, Evaluation, NotApplicableError, Subject, Tick, no_tick
from saetools.evals.bootstrap import bootstrap_interval, too_few
from saetools.functional.matching import best_matches, hungarian_match, random_atoms_like
from saetools.rng import torch_seed

MEASURES = ("matched_cosine", "shared_features", "nearest_cosine")


class Stability(Evaluation, name="stability"):
    """Atoms shared with other dictionaries, against chance."""

    uses_others = True
    cost = "one assignment of F x F per other dictionary"

    class Config(Evaluation.Config):
        """What counts as shared."""

        shared_at: float = Field(0.7, gt=0, le=1, description="cosine from which two atoms count as the same")

    config: Config

    def missing(self, subject: Subject) -> str | None:
        return None if subject.others else "needs other dictionaries to compare with"

    def run(self, subject: Subject, tick: Tick = no_tick) -> list[EvalRecord]:
        own_FD = _in_use("this dictionary", subject.dictionary)
        names = list(subject.others)
        columns, chance = [], []
        for name, other in subject.others.items():
            other_FD = _atoms(name, other, own_FD.shape[1])
            either_sign = subject.dictionary.signed or other.signed
            columns.append(self._per_feature(own_FD, other_FD, either_sign))
            random_FD = random_atoms_like(other_FD, torch_seed(subject.seed, "stability chance"))
            chance.append(self._per_feature(own_FD, random_FD, either_sign))
        records = []
        for i, measure in enumerate(MEASURES):
            for suffix, found in (("", columns), ("_chance", chance)):
                values_FO = np.stack([per_feature[i] for per_feature in found], 1).astype(np.float64)
                known_FO = np.isfinite(values_FO)
                sums_FC = np.concatenate([known_FO, np.where(known_FO, values_FO, 0.0)], 1)
                each_O = _mean_of_each(sums_FC.sum(0)[None])[0]
                records.append(
                    self.record(
                        f"{measure}{suffix}",
                        each_O.mean(),
                        "fraction of features" if measure == "shared_features" else "cosine",
                        int(known_FO.any(1).sum()),
                        n_unit="features",
                        spread=bootstrap_interval(sums_FC, lambda totals: _mean_of_each(totals).mean(1), subject.seed),
                        note=too_few(len(own_FD), "features"),
                        series=dict(zip(names, each_O[:, None].tolist(), strict=True)),
                    )
                )
        return records

    def _per_feature(self, own_FD: Tensor, other_FD: Tensor, either_sign: bool) -> tuple[np.ndarray, ...]:
        """For each feature: cosine of its partner (nan without one), whether it is shared, its greatest cosine."""
        match = hungarian_match(own_FD, other_FD, either_sign)
        partner_F = torch.full((len(own_FD),), torch.nan, dtype=torch.float32).index_put((match.a_P,), match.cosine_P)
        nearest_F, _ = best_matches(own_FD, other_FD, either_sign)
        return partner_F.numpy(), (partner_F >= self.config.shared_at).double().numpy(), nearest_F.numpy()


def _atoms(name: str, other: Dictionary, d_model: int) -> Tensor:
    other_FD = _in_use(repr(name), other)
    if other_FD.shape[1] != d_model:
        raise MismatchError(
            f"the dictionary {name!r} is for width {other_FD.shape[1]}, this one for {d_model}: their atoms cannot be "
            "compared. Give dictionaries of the same point."
        )
    return other_FD


def _in_use(name: str, dictionary: Dictionary) -> Tensor:
    atoms_FD = dictionary.directions()[dictionary.in_use_F()].cpu()
    if not bool(atoms_FD.isfinite().all()):
        raise NotApplicableError(f"atoms of {name} are not finite: they have no cosine")
    return atoms_FD


def _mean_of_each(totals_RC: np.ndarray) -> np.ndarray:
    """[R, O]: the mean over features for each other; totals are O numbers of features, then O sums."""
    n_RO, sum_RO = np.split(totals_RC, 2, axis=1)
    return np.divide(sum_RO, n_RO, out=np.full_like(sum_RO, np.nan), where=n_RO > 0)
