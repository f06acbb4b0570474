"""Frozen records that travel between rooms as JSON: no torch here."""

from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class FrozenModel(BaseModel):
    """Base of every record: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", protected_namespaces=())


class FrozenConfig(FrozenModel):
    """Base of what a user writes: a number that is not finite is an error too."""

    model_config = ConfigDict(allow_inf_nan=False)


HOOKED = {  # of the bridge, within a block: of the HookedTransformer
    "hook_in": "hook_resid_pre",
    "hook_out": "hook_resid_post",
    "attn.hook_out": "hook_attn_out",
    "mlp.hook_out": "hook_mlp_out",
    "attn.o.hook_in": "attn.hook_z",
    "mlp.out.hook_in": "mlp.hook_post",
}


class PointSpec(FrozenModel):
    """What a vector is: of which host, at which point, made how. A dictionary is valid for these vectors alone."""

    host: str = Field(description="host name as given: pycode, a hub name or a directory; `rows` without a host")
    revision: str | None = Field(None, description="content hash (local) or commit (hub) of the host's weights")
    point: str = Field(description="canonical hook point name, or `rows`")
    d_model: int = Field(description="width of the vectors")
    prepend_bos: bool | None = Field(None, description="whether each window began with BOS")
    compatibility_mode: bool = Field(False, description="whether weights were folded and centred by transformer-lens")
    host_dtype: str | None = Field(None, description="dtype in which the host ran")
    tokenizer_hash: str | None = Field(None, description="sha256 of the tokenizer's serialised form")
    context_tokens: int | None = Field(None, description="tokens per window, BOS included")

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides the vectors: weights known by their revision are the same under any name."""
        return self.model_dump(exclude={"host"} if self.revision else None)

    @property
    def host_name(self) -> str:
        """The host as others may read it: not where a directory lies on this machine.

        >>> PointSpec(host="/home/me/gpt2", point="blocks.2.hook_out", d_model=768).host_name
        'gpt2'
        """
        path = PurePath(self.host)
        return path.name if path.is_absolute() else self.host

    @property
    def hooked_point(self) -> str:
        """The point's older name, of transformer-lens' HookedTransformer, which other libraries use; else its own.

        >>> PointSpec(host="gpt2", point="blocks.2.hook_out", d_model=768).hooked_point
        'blocks.2.hook_resid_post'
        """
        blocks, _, rest = self.point.partition(".")
        layer, _, inside = rest.partition(".")
        if blocks == "blocks" and inside in HOOKED:
            return f"blocks.{layer}.{HOOKED[inside]}"
        return "hook_embed" if self.point == "embed.hook_out" else self.point


class Calibration(FrozenModel):
    """Constants measured once, over the first kept rows, before step 0; used unchanged ever after.

    `scale` is such that E||scale * x||^2 = d_model. All the rest is in units of *scaled* rows, but
    `median_norm` and `gradient_rms`, which are of raw rows. Constants published for E||x||^2 = 1 are converted with
    the factor d_model for squared norms and sqrt(d_model) for norms, codes and thresholds.
    """

    scale: float = Field(description="factor on raw rows")
    total_variance: float = Field(description="V = E||y - E y||^2 of scaled rows y")
    median_norm: float = Field(description="median Euclidean norm of raw rows; where most are zero, of the others")
    b_dec_start: tuple[float, ...] = Field(description="geometric median of scaled rows, length d_model")
    n_rows: int = Field(description="rows measured, outliers left out where the source drops them")
    gradient_rms: float | None = Field(
        None, description="root mean square of the entries of raw gradients; None where the rows carry no `grad`"
    )


class EvalRecord(FrozenModel):
    """One figure of an evaluation."""

    name: str = Field(description="name of the figure, e.g. fvu")
    value: float | None = Field(description="the figure; None where it is undefined on this data")
    unit: str = Field(description="unit: fraction, nats per token, features per token, ...")
    n: int = Field(description="number of items that it was computed over")
    n_unit: str = Field("tokens", description="what n counts")
    spread: tuple[float, float] | None = Field(
        None, description="95 % bootstrap interval over documents, or over the n items of a mean of items"
    )
    series: dict[str, list[float | None]] | None = Field(
        None, description="curves or histograms behind the figure; None where one has no value"
    )
    config: dict[str, Any] = Field(default_factory=dict, description="settings of the evaluation")
    heldout: str | None = Field(
        None, description="what was judged on: text, host, point, windows; None where not recorded"
    )
    note: str | None = Field(None, description="what a reader must know, e.g. why an evaluation was skipped")
