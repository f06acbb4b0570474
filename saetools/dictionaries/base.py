"""The contract of a dictionary and the registry of kinds. Adding a dictionary is adding one file beside this one."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from saetools.dictionaries.code import SparseCode
from saetools.dictionaries.describe import description, html_table
from saetools.errors import ConfigError, DataError, MismatchError, nearest
from saetools.functional.constraints import project_tangent_, unit_rows_
from saetools.functional.initialise import starting_rows, starting_scale, tied_start
from saetools.functional.linear import dense_is_faster, gather_sum, preactivations
from saetools.functional.statistics import dead_F, firing_counts_F, tokens_since_fired_F
from saetools.kernels.plan import FusedBatch, FusedPlan
from saetools.records import Calibration, FrozenConfig, PointSpec

_REGISTRY: dict[str, type["Dictionary"]] = {}
CHUNK_ELEMENTS = 1 << 24
"""Encoding holds at most this many pre-activations at a time (64 MiB in float32)."""

AnyState = TypeVar("AnyState", bound="State")


@dataclass(frozen=True)
class Progress:
    """Where a training run stands, for schedules and dead counts."""

    step: int  # optimizer steps done before this one
    n_steps: int  # steps of the whole run
    n_tokens: int  # rows of the whole run
    dead_after_tokens: int  # a feature that has not fired for so many rows is dead

    def ramp(self, fraction: float) -> float:
        """A weight that grows linearly from 0 to 1 over the first `fraction` of the steps."""
        return min(1.0, (self.step + 1) / max(1.0, fraction * self.n_steps))


@dataclass(frozen=True)
class State:
    """What training remembers between steps and inference never reads: a frozen record of tensors."""

    tokens_since_fired_F: Tensor  # int64

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the record by name, as checkpoints hold them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def with_tensors(self: AnyState, tensors: Mapping[str, Tensor]) -> AnyState:
        """The record with its tensors replaced by name; names and shapes must be its own."""
        own = self.tensors()
        if set(own) != set(tensors) or any(own[name].shape != tensors[name].shape for name in own):
            raise DataError(
                f"the saved state has {sorted(tensors)}; {type(self).__name__} needs "
                f"{ {name: tuple(value.shape) for name, value in own.items()} }. It is of another config or of another "
                "version of saetools: go on with the one that wrote it, or begin the run again."
            )
        return replace(self, **tensors)


@dataclass(frozen=True)
class Terms:
    """What one evaluation of the loss gives. Losses are means over rows, named and unweighted."""

    code: SparseCode
    residual_ND: Tensor  # target - recon
    losses: dict[str, Tensor]
    new_state: State


class Dictionary(nn.Module):
    """A sparse dictionary of F features over vectors of width D.

    Rows are float32 vectors in the units that the dictionary was made for: scaled rows while training, raw rows
    after `fold_scale_` (what `saetools.load` returns). Row i of every matrix is feature i; atoms (rows of W_dec_FD)
    have unit norm. A kind without encoder weights sets `has_encoder = False` and has neither W_enc_FD nor b_enc_F.
    """

    kind: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    trained_by: ClassVar[Literal["gradient", "construction", "nothing"]] = "gradient"
    has_encoder: ClassVar[bool] = True
    signed: bool = False  # whether to negate a feature (its atom and encoder) negates its code and changes nothing else
    batch_coupled: bool = False  # whether the training code of a row depends on the other rows or its place among them
    scaled_with_x: tuple[str, ...] = ("b_enc_F", "b_dec_D")
    """Parameters and buffers in units of x: multiplying the data by c multiplies them, and the code, by c."""

    W_enc_FD: Tensor
    W_dec_FD: Tensor
    b_enc_F: Tensor
    b_dec_D: Tensor
    total_variance: Tensor

    class Config(FrozenConfig):
        """What all kinds share."""

        scheduled_by: ClassVar[tuple[str, ...]] = ()  # fields that, unless 0, act by the length of the run
        n_features: int = Field(gt=0, description="F, the number of features")
        if TYPE_CHECKING:
            kind: str  # each kind's own field is the Literal of its names

        def validate_for(self, d_model: int) -> None:
            """Raise ConfigError where this config cannot work on vectors of width d_model."""

    def __init_subclass__(cls, kind: str | None = None, aliases: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind is None:  # what several kinds share, itself no kind
            return
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
        cls.Config.__qualname__ = f"{cls.__qualname__}.Config"  # where it is found: pickle goes by it

    def __init__(self, config: "Dictionary.Config", d_model: int, seed: int = 0) -> None:
        super().__init__()
        config.validate_for(d_model)
        self.config, self.d_model, self.seed = config, d_model, seed
        self.spec: PointSpec | None = None  # what vectors this dictionary is for, where known
        self.calibration: Calibration | None = None  # constants of the rows that it was trained on, as saved
        self.provenance: Mapping[str, Any] = {}  # how it was trained, as saved
        W_enc_FD, W_dec_FD = tied_start(config.n_features, d_model, seed)
        if self.has_encoder:
            self.W_enc_FD = nn.Parameter(W_enc_FD)
            self.b_enc_F = nn.Parameter(torch.zeros(config.n_features, dtype=torch.float32))
        self.W_dec_FD = nn.Parameter(W_dec_FD)
        self.b_dec_D = nn.Parameter(torch.zeros(d_model, dtype=torch.float32))
        self.register_buffer("total_variance", torch.ones((), dtype=torch.float64))

    # --- what every kind defines ---------------------------------------------------------------------------

    def encode_chunk(self, x_ND: Tensor, fields: Mapping[str, Tensor]) -> SparseCode:
        """Inference code of a few rows, of the right width and dtype; never depends on the other rows."""
        raise NotImplementedError

    def encode_reference(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        """code_NF by plain dense torch; the contract suite compares `encode` with it."""
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

    def update(self, x_ND: Tensor, where_N2: Tensor, state: State) -> Terms:
        """Learn from one batch of scaled rows, in place: in place of `loss_terms`, for kinds trained by construction.

        where_N2: (document, position) of each row. The terms, "reconstruction" among them, are those before it.
        """
        raise NotImplementedError

    @classmethod
    def examples(cls) -> list["Dictionary.Config"]:
        """Small configs (for d_model 16) that the contract suite runs; made with `cls.configure`."""
        raise NotImplementedError

    # --- what a kind may redefine --------------------------------------------------------------------------

    def decode(self, code: SparseCode) -> Tensor:
        """recon_ND = code W_dec + b_dec. Raises MismatchError for a code of another number of features."""
        if code.n_features != self.config.n_features:
            raise MismatchError(
                f"this code has {code.n_features} features; the {self.kind} dictionary has {self.config.n_features}. "
                "Decode a code with the dictionary that made it."
            )
        if dense_is_faster(code.values.numel(), len(code), code.n_features):
            return code.to_dense().to(self.W_dec_FD.dtype) @ self.W_dec_FD + self.b_dec_D
        return gather_sum(code.values, code.indices, self.W_dec_FD, code.offsets_N1) + self.b_dec_D

    @property
    def full(self) -> bool:
        """Whether construction has ended: no further row would change the dictionary."""
        return False

    def loss_weights(self, progress: Progress) -> dict[str, float]:
        """The coefficient of each named loss at this point of the run."""
        return {"reconstruction": 1.0}

    def initial_state(self) -> State:
        """The state of training before the first step."""
        return State(torch.zeros(self.config.n_features, dtype=torch.int64, device=self.device))

    def next_state(self, state: State, code: SparseCode) -> State:
        """The state after a batch with this training code: counters of tokens since each feature fired.

        Called by `loss_terms` and by the fused step alike.
        """
        since_F = tokens_since_fired_F(state.tokens_since_fired_F, firing_counts_F(code), len(code))
        return replace(state, tokens_since_fired_F=since_F)

    def calibrate_(self, calibration: Calibration) -> None:
        """Begin: take over the constants and the start of b_dec measured on the first rows, give the encoder its size.

        Scaled rows have mean square D, so the size is found on random rows of that length: see `starting_scale`.
        """
        self.take_constants_(calibration)
        with torch.no_grad():
            self.b_dec_D.copy_(torch.tensor(calibration.b_dec_start, dtype=torch.float32, device="cpu"))
            if self.has_encoder and self.trained_by == "gradient":
                x_ND = starting_rows(self.d_model)
                recon_ND = self.starting_recon(x_ND + self.b_dec_D) - self.b_dec_D
                self.W_enc_FD.mul_(starting_scale(x_ND, recon_ND))

    def take_constants_(self, calibration: Calibration) -> None:
        """Take over the constants of the rows that it is to be trained on; also where it begins as a trained one."""
        self.total_variance.fill_(calibration.total_variance)

    def starting_recon(self, x_ND: Tensor) -> Tensor:
        """recon_ND before training, the code chosen as in training."""
        progress = Progress(step=0, n_steps=1, n_tokens=len(x_ND), dead_after_tokens=len(x_ND))
        return x_ND - self.loss_terms(x_ND, x_ND, {}, self.initial_state(), progress).residual_ND

    def absorb_(self, state: State) -> None:
        """Copy into saved buffers what inference needs of the training state (thresholds). Called before each save."""

    def project_gradients_(self) -> None:
        """Remove from gradients what the constraint forbids; called before clipping."""
        if self.W_dec_FD.grad is not None:
            project_tangent_(self.W_dec_FD.grad, self.W_dec_FD)

    def constrain_(self) -> None:
        """Restore the constraint (unit atoms) after an optimizer step."""
        unit_rows_(self.W_dec_FD)

    def fused_plan(self) -> FusedPlan | None:
        """How a fused step trains this dictionary, or None where only autograd does."""
        return None

    def fused_batch(
        self, x_ND: Tensor, fields: Mapping[str, Tensor], state: State, progress: Progress
    ) -> tuple[State, FusedBatch]:
        """(state with what the batch's fields add to it, what the fused step is to select and help in this batch)."""
        plan = self.fused_plan()
        assert plan is not None
        dead_A = dead_F(state.tokens_since_fired_F, progress.dead_after_tokens).nonzero()[:, 0]
        return state, FusedBatch(plan.selection, dead_A)

    def fused_state(self, state: State, code: SparseCode, reached_F: Tensor | None) -> State:
        """`next_state` after a fused batch; reached_F: how many pre-activations reached the batch's threshold_F."""
        return self.next_state(state, code)

    # --- what every kind gets ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.total_variance.device

    @classmethod
    def configure(cls, **settings: Any) -> "Dictionary.Config":
        """A config of this kind, e.g. `TopK.configure(n_features=4096, k=32)`."""
        return cls.Config.model_validate({"kind": cls.kind, **settings})

    def pre(self, x_ND: Tensor) -> Tensor:
        """pre_NF = (x - b_dec) W_enc^T + b_enc, the encoder's output before selection."""
        return preactivations(x_ND, self.W_enc_FD, self.b_enc_F, self.b_dec_D)

    def encode(self, x_ND: Tensor, fields: Mapping[str, Tensor] | None = None) -> SparseCode:
        """Inference code of each row; never depends on the other rows.

        x_ND: rows of width D, any floating dtype; `fields`: tensors [N, ...] aligned with them, for kinds that use
        some. Works through chunks, so that pre_NF is never held whole. Raises MismatchError on another width.
        """
        x_ND, fields = self._checked(x_ND), fields or {}
        n_chunk = max(1, CHUNK_ELEMENTS // self.config.n_features)
        if len(x_ND) <= n_chunk:
            return self.encode_chunk(x_ND, fields)
        slices = [slice(start, start + n_chunk) for start in range(0, len(x_ND), n_chunk)]
        return SparseCode.concatenate(
            [self.encode_chunk(x_ND[rows], {name: value[rows] for name, value in fields.items()}) for rows in slices]
        )

    def forward(self, x: Tensor, fields: Mapping[str, Tensor] | None = None) -> Tensor:
        """recon of x [..., D], of its shape and dtype."""
        recon_ND = self.decode(self.encode(x.reshape(-1, x.shape[-1]) if x.ndim != 2 else x, fields))
        return recon_ND.reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def fold_scale_(self, scale: float) -> None:
        """Make a dictionary of scaled rows one of raw rows: x -> f(scale * x) / scale, atoms unchanged."""
        for name in self.scaled_with_x:
            getattr(self, name).div_(scale)
        self.total_variance.div_(scale * scale)

    def directions(self) -> Tensor:
        """W_dec_FD: row i is what feature i adds to the reconstruction per unit of its code."""
        return self.W_dec_FD.detach()

    def in_use_F(self) -> Tensor:
        """bool [F]: the places that hold an atom: all of them, but where construction has not filled a dictionary."""
        return self.directions().any(dim=1)

    def encoder_directions(self) -> Tensor | None:
        """W_enc_FD: row i is what feature i looks for; None for kinds without an encoder matrix."""
        return self.W_enc_FD.detach() if self.has_encoder else None

    def extra_repr(self) -> str:
        """What torch prints of it: kind, sizes, point, ..."""
        return ", ".join(f"{name}={value}" for name, value in description(self).items())

    def _repr_html_(self) -> str:
        return html_table(f"{type(self).__name__} dictionary", description(self))

    def _checked(self, x_ND: Tensor) -> Tensor:
        """The rows in the weights' dtype; MismatchError on another shape, and on what is no tensor of real numbers."""
        if not isinstance(x_ND, Tensor):
            raise MismatchError(f"rows are a torch tensor, got a {type(x_ND).__name__}: torch.as_tensor(x) makes one.")
        if x_ND.ndim != 2 or x_ND.shape[1] != self.d_model:
            of = "" if self.spec is None else f" (made for {self.spec.point} of {self.spec.host})"
            raise MismatchError(
                f"these rows have shape {tuple(x_ND.shape)}; this {self.kind} dictionary{of} takes "
                f"[N, {self.d_model}]. Give it activations of the point that it was trained on."
            )
        if not x_ND.is_floating_point():
            raise MismatchError(f"rows are floating-point numbers, got {x_ND.dtype}: x.float() makes them so.")
        return x_ND.to(self.W_dec_FD.dtype)


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
    """The class of a kind; an unknown kind names the nearest one.

    >>> dictionary_class("batch_topk").kind
    'mutual_choice'
    """
    known = available_dictionaries()
    if kind not in known:
        raise ConfigError(f"unknown dictionary kind {kind!r}.{nearest(kind, known)} Known: {', '.join(known)}.")
    return known[kind]


def make_dictionary(config: "Dictionary.Config", d_model: int, seed: int = 0) -> Dictionary:
    """A fresh dictionary on the CPU, whatever torch's default device; equal arguments give equal weights."""
    with torch.device("cpu"):
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
