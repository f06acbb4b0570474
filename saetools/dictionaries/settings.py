"""Settings that several kinds share, as mixins of their configs."""

from typing import Any, ClassVar

from pydantic import Field

from saetools.dictionaries.base import Dictionary, Progress
from saetools.errors import ConfigError


class WithK(Dictionary.Config):
    """A number of features kept."""

    k: int = Field(gt=0, description="features kept per row (on average, where the batch shares them)")

    def validate_for(self, d_model: int) -> None:
        """Raise ConfigError where k is more than the number of features."""
        super().validate_for(d_model)
        if self.k > self.n_features:
            raise ConfigError(f"k = {self.k} is more than n_features = {self.n_features}. Lower k or raise n_features.")


class WithAuxK(Dictionary.Config):
    """The auxiliary loss that revives dead features."""

    aux_weight: float = Field(1 / 32, ge=0, description="weight of AuxK (Gao et al.: 1/32); 0 trains without")
    k_aux: int | None = Field(None, gt=0, description="dead features per row in AuxK; null: d_model / 2")

    def k_aux_for(self, d_model: int) -> int:
        """The number of dead features that AuxK uses per row, where so many are dead."""
        return self.k_aux or max(1, d_model // 2)

    def fused_auxiliary(self, d_model: int, name: str = "auxk") -> dict[str, Any]:
        """What the fused plan says of this loss: nothing where trained without it."""
        return {"auxiliary": name, "aux_k": self.k_aux_for(d_model)} if self.aux_weight else {}


class WithWarmup(Dictionary.Config):
    """A penalty whose weight grows at the beginning, so that features first find directions."""

    scheduled_by: ClassVar[tuple[str, ...]] = ("warmup_fraction",)
    warmup_fraction: float = Field(0.05, ge=0, le=1, description="first part of the run, over which the penalty grows")


class WithL1(WithWarmup):
    """A sum of absolute codes as penalty."""

    l1_weight: float = Field(0.05, ge=0, description="weight of sum |code| / sqrt(V); as published for E||x||^2 = 1")

    def l1_weight_at(self, progress: Progress) -> float:
        """The weight at this step."""
        return self.l1_weight * progress.ramp(self.warmup_fraction)
