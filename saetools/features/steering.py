"""Steering a host along one feature: `with steer(host, dictionary, 17, "clamp", value=8.0): host.generate(...)`."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import index
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from saetools.dictionaries.base import Dictionary
from saetools.dictionaries.belonging import check_belongs
from saetools.errors import ConfigError, nearest
from saetools.lm.base import Host

How = Literal["add", "clamp", "ablate", "project", "capped"]
Positions = Sequence[int] | slice | None


def steer(
    host: Host,
    dictionary: Dictionary,
    feature: int,
    how: How = "add",
    strength: float = 1.0,
    positions: Positions = None,
    *,
    value: float = 1.0,
    keep_error: bool = True,
    point: str | None = None,
    elsewhere: Collection[str] = (),
) -> AbstractContextManager[None]:
    """While active, every forward pass of the host, generation included, has the feature edited at its point.

    With d the feature's decoder row, a its code at x, and base = x (or recon, with keep_error=False, which throws away
    what the dictionary does not explain):

        add      edit(x) = base + value * d
        clamp    edit(x) = base + (value - a) * d           the feature is at `value` everywhere
        ablate   edit(x) = base - a * d                     clamp to 0
        project  edit(x) = base - <base, d> d / ||d||^2     nothing along d, whatever put it there
        capped   as add, then scaled down to the norm of base where it is longer

        x' = x + strength * (edit(x) - x);  at strength 0 the input itself is returned

    `positions`: places in the window (negative: from its end) or a slice of them; None is all but the first where the
    host begins windows with BOS, whose activations no dictionary has seen. A window grows while generating, and every
    pass edits its positions anew. `value` is in units of the code. `point`: needed only for a dictionary that does not
    know its own, or to steer at another. `elsewhere`: what else is meant to differ from what the dictionary was made
    for, by name ("host", ...). Raises ConfigError for an unknown `how` or feature, other `positions` or a missing
    point, MismatchError where the host is another, or widths differ.
    """
    named = point or (dictionary.spec.point if dictionary.spec else None)
    if named is None:
        raise ConfigError(
            "This dictionary does not know which point it is for. Give steer(..., point='blocks.2.hook_out')."
        )
    check_belongs(dictionary, host.spec(named), {*elsewhere, "point"} if point else elsewhere)
    chosen = slice(int(host.prepend_bos), None) if positions is None else positions
    edit = FeatureEdit(dictionary, feature, how, strength, chosen, value, keep_error)
    return host.editing({host.canonical(named): edit})


@dataclass(frozen=True)
class FeatureEdit:
    """The edit of `steer` as a function of activations; for `Host.logits(ids, edits={point: edit})`."""

    dictionary: Dictionary
    feature: int
    how: How = "add"
    strength: float = 1.0
    positions: Positions = None  # all
    value: float = 1.0
    keep_error: bool = True

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            known = get_args(How)
            raise ConfigError(
                f"unknown way to steer {self.how!r}.{nearest(self.how, known)} Known: {', '.join(known)}."
            )
        n_features = self.dictionary.config.n_features
        try:
            is_known = 0 <= index(self.feature) < n_features
        except TypeError:
            is_known = False
        if not is_known:
            raise ConfigError(
                f"there is no feature {self.feature!r}: the dictionary has features 0 to {n_features - 1}."
            )
        try:
            if self.positions is not None and not isinstance(self.positions, slice):
                # an iterator would be empty at the first pass, and a list could change under the hook
                object.__setattr__(self, "positions", tuple(map(index, self.positions)))
            self._columns(1)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"positions is {self.positions!r}. Give a list of whole numbers, as [3] or [0, -1], a slice of step 1 "
                "or more, or None."
            ) from error

    @torch.no_grad()
    def __call__(self, x_BTD: Tensor) -> Tensor:
        columns = self._columns(x_BTD.shape[1])
        if self.strength == 0 or len(columns) == 0:
            return x_BTD
        part = x_BTD[:, columns]
        x_ND = rearrange(part, "b t d -> (b t) d").to(self.dictionary.device, torch.float32)
        edited_ND = x_ND + self.strength * (self._edited(x_ND) - x_ND)
        steered_BTD = x_BTD.clone()
        steered_BTD[:, columns] = edited_ND.to(x_BTD.device, x_BTD.dtype).view_as(part)
        return steered_BTD

    def _columns(self, n_positions: int) -> Tensor:
        """int64: the places that this window has, of those wanted."""
        if self.positions is None or isinstance(self.positions, slice):
            return torch.arange(n_positions)[self.positions or slice(None)]
        places = [p % n_positions for p in self.positions if -n_positions <= p < n_positions]
        return torch.tensor(places, dtype=torch.long)

    def _edited(self, x_ND: Tensor) -> Tensor:
        d_D = self.dictionary.directions()[self.feature].to(torch.float32)
        code = self.dictionary.encode(x_ND) if self.how in ("clamp", "ablate") or not self.keep_error else None
        base_ND = x_ND if self.keep_error or code is None else self.dictionary.decode(code).float()
        if self.how == "project":
            return base_ND - (base_ND @ d_D / d_D.square().sum().clamp_min(1e-30))[:, None] * d_D
        if self.how in ("clamp", "ablate"):
            assert code is not None
            row_M, feature_M, value_M = code.flat()
            own = feature_M == self.feature
            a_N = torch.zeros(len(x_ND), dtype=torch.float32, device=x_ND.device).index_add_(
                0, row_M[own], value_M[own].float()
            )
            return base_ND + ((self.value if self.how == "clamp" else 0.0) - a_N)[:, None] * d_D
        added_ND = base_ND + self.value * d_D
        if self.how == "add":
            return added_ND
        norms_N, limits_N = (torch.linalg.vector_norm(v, dim=1) for v in (added_ND, base_ND))
        return added_ND * (limits_N / norms_N.clamp_min(1e-30)).clamp_max(1.0)[:, None]
