"""The contract of a dictionary and the registry of kinds. Adding a dictionary is adding one file beside this one."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from saetools.dictionaries.code import SparseCode
from saetools.errors import ConfigError, DataError, nearest
from saetools.kernels.plan import FusedPlan
from saetools.records import Calibration, FrozenModel

_REGISTRY: dict[str, type["Dictionary"]] = {}


@dataclass(frozen=True)
class Progress:
    """Where a training run stands, for schedules and dead counts."""

    step: int  # optimizer steps done before this one
    n_steps: int  # steps of the whole run
    n_tokens: int  # rows of the whole run


@dataclass(frozen=True)
class State:
    """What training remembers between steps and inference never reads: a frozen record of tensors."""

    tokens_since_fired_F: Tensor  # int64

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "State":
        """The record with its tensors replaced by name; names and shapes must be its own."""
        own = self.tensors()
        if set(own) != set(tensors) or any(own[name].shape != tensors[name].shape for name in own):
            raise DataError(
                f"the saved state has {sorted(tensors)}; {type(self).__name__} needs "
                f"{ {name: tuple(value.shape) for name, value in own.items()} }"
            )
        return replace(self, **tensors)


@dataclass(frozen=True)
class Terms:
    """What one evaluation of the loss gives. Losses are means over rows, named and unweighted."""

    code: SparseCode
    residual_ND: Tensor  # target - recon
    losses: Mapping[str, Tensor]
    new_state: State


class Dictionary(nn.Module):
    """A sparse dictionary of F features over vectors of width D.

    Rows are float32 vectors in the units that the dictionary was made for: scaled rows while training, raw rows
    after `fold_scale_` (what `saetools.load` returns).
    """

    kind: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    trained_by: ClassVar[Literal["gradient", "construction", "nothing"]] = "gradient"
    batch_coupled: ClassVar[bool] = False  # whether training-time selection looks at other rows
    scaled_with_x: ClassVar[tuple[str, ...]] = ("b_enc_F", "b_dec_D")
    """Parameters and buffers in units of x: multiplying the data by c multiplies them, and the code, by c."""

    W_dec_FD: Tensor
    b_dec_D: Tensor

    class Config(FrozenModel):
        """What all kinds share."""

        n_features: int = Field(gt=0, description="F, the number of features")

        def validate_for(self, d_model: int) -> None:
            """Raise ConfigError where this config cannot work on vectors of width d_model."""

    def __init_subclass__(cls, kind: str, aliases: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in (kind, *aliases):
            if name in _REGISTRY:
                raise ValueError(f"the dictionary kind {name!r} is already taken by {_REGISTRY[name].__qualname__}")
            _REGISTRY[name] = cls
        cls.kind, cls.aliases = kind, aliases
        names = Literal[(kind, *aliases)]  # type: ignore[valid-type]
        cls.Config = create_model(  # type: ignore[misc]
            f"{cls.__name__}Config",
            __base__=cls.Config,
            __module__=cls.__module__,
            __doc__=(cls.__doc__ or kind).splitlines()[0],
            kind=(names, Field(description="kind of dictionary")),
        )

    def __init__(self, config: "Dictionary.Config", d_model: int, seed: int = 0) -> None:
        super().__init__()
        config.validate_for(d_model)
        self.config, self.d_model, self.seed = config, d_model, seed
        self.register_buffer("total_variance", torch.ones((), dtype=torch.float64))

    # --- what every kind defines ---------------------------------------------------------------------------

    def encode(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> SparseCode:
        """Inference code of each row; never depends on the other rows."""
        raise NotImplementedError

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        """code_NF by plain dense torch; the contract suite compares `encode` with it."""
        raise NotImplementedError

    def decode(self, code: SparseCode) -> Tensor:
        """recon_ND = code W_dec + b_dec."""
        raise NotImplementedError

    def loss_terms(
        self,
        x_ND: Tensor,
        target_ND: Tensor,
        fields: Mapping[str, Tensor],
        state: State,
        progress: Progress,
    ) -> Terms:
        """Named, unweighted losses of one batch. Pure: nothing on `self` changes."""
        raise NotImplementedError

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        """The coefficient of each named loss at this point of the run."""
        return {"reconstruction": 1.0}

    def initial_state(self) -> State:
        return State(torch.zeros(self.config.n_features, dtype=torch.int64, device=self.device))

    def calibrate_(self, calibration: Calibration) -> None:
        """Take over what was measured on the first rows: V and the start of b_dec."""
        self.total_variance.fill_(calibration.total_variance)
        with torch.no_grad():
            start = torch.tensor(calibration.b_dec_start)
            self.b_dec_D.copy_(start)

    def absorb_(self, state: State) -> None:
        """Copy into saved buffers what inference needs of the training state (thresholds). Called before each save."""

    def project_gradients_(self) -> None:
        """Remove from gradients what the constraint forbids; called before clipping."""

    def constrain_(self) -> None:
        """Restore the constraint (unit atoms) after an optimizer step."""

    def fused_plan(self) -> FusedPlan | None:
        """How a fused step trains this dictionary, or None where only autograd does."""
        return None

    @classmethod
    def examples(cls) -> list["Dictionary.Config"]:
        """Small configs (d_model 16) that the contract suite runs."""
        raise NotImplementedError

    # --- what every kind gets ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.total_variance.device

    def forward(self, x_ND: Tensor) -> Tensor:
        """recon_ND of each row."""
        return self.decode(self.encode(x_ND))

    @torch.no_grad()
    def fold_scale_(self, scale: float) -> None:
        """Make a dictionary of scaled rows one of raw rows: x -> f(scale * x) / scale, atoms unchanged."""
        for name in self.scaled_with_x:
            getattr(self, name).div_(scale)
        self.total_variance.div_(scale * scale)

    def directions(self) -> Tensor:
        """W_dec_FD: row i is what feature i adds to the reconstruction per unit of its code."""
        return self.W_dec_FD.detach()


def _load_kinds() -> None:
    """Import every file of this room, so that a kind exists by its file existing."""
    import saetools.dictionaries as room

    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")


def available_dictionaries() -> dict[str, type[Dictionary]]:
    """All kinds by name, aliases included."""
    _load_kinds()
    return dict(sorted(_REGISTRY.items()))


def dictionary_class(kind: str) -> type[Dictionary]:
    """The class of a kind; an unknown kind names the nearest one."""
    known = available_dictionaries()
    if kind not in known:
        raise ConfigError(f"unknown dictionary kind {kind!r}.{nearest(kind, known)} Known: {', '.join(known)}.")
    return known[kind]


def make_dictionary(config: "Dictionary.Config", d_model: int, seed: int = 0) -> Dictionary:
    """A fresh dictionary; equal arguments give equal weights."""
    return dictionary_class(config.kind)(config, d_model, seed)


__all__ = [
    "Calibration",
    "Dictionary",
    "FusedPlan",
    "Progress",
    "SparseCode",
    "State",
    "Terms",
    "available_dictionaries",
    "dictionary_class",
    "make_dictionary",
]
