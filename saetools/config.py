"""The configuration of a run: frozen sections, each field with its description and unit.

The `dictionary` section is a union over the registered kinds, so it is built where the registry is known
(`run_config_class`, called by the command line) and has no default.
"""

from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from saetools.records import FrozenConfig, FrozenModel
from saetools.safeio import expanded

Dtype = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
LocalPath = Annotated[Path, AfterValidator(expanded)]
"""Of a file or directory of this machine; a leading ~ is the home directory."""


def _source(value: object) -> object:
    """A path as text, in full; hf://... as it is, which as a path would have one slash."""
    is_local = isinstance(value, Path) or (isinstance(value, str) and not value.startswith("hf://"))
    return str(expanded(str(value))) if is_local else value


class HostConfig(FrozenConfig):
    """The subject model."""

    name: str = Field("pycode", description="pycode (embedded), a hub name such as gpt2, or a directory")
    revision: str | None = Field(None, description="commit of a hub model")
    dtype: Dtype = Field("float32", description="dtype in which the host runs")
    prepend_bos: bool = Field(True, description="begin each window with the tokenizer's BOS")
    compatibility_mode: bool = Field(False, description="fold norms and centre weights (transformer-lens)")


class CorpusConfig(FrozenConfig):
    """The text."""

    name: str = Field(
        "stdlib", description="stdlib, a hub data set, or a json / jsonl / parquet / txt file or directory"
    )
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = Field("train", description="split of a hub data set; held-out documents are taken out of it by hash")
    text_field: str = Field("text", description="column that holds the text")
    streaming: bool = Field(False, description="stream a hub data set instead of downloading it whole")
    context_tokens: int = Field(256, gt=1, description="tokens per window, BOS included")
    max_documents: int | None = Field(None, gt=0, description="use only the first documents of each split")


class PlantedConfig(FrozenConfig):
    """A law of planted rows (activations/planted.py)."""

    d_model: int = Field(gt=0, description="D, width of a row")
    n_features: int = Field(gt=0, description="F, number of planted atoms")
    mean_active: float = Field(
        gt=0, description="expected number of root features that fire per row, before parents gate"
    )
    zipf_exponent: float = Field(0.5, ge=0, description="firing probability of feature i falls as (i + 1)^-exponent")
    coefficient_low: float = Field(0.5, gt=0, description="least coefficient of a firing feature")
    coefficient_high: float = Field(1.5, gt=0, description="greatest coefficient of a firing feature")
    noise: float = Field(0.0, ge=0, description="standard deviation of Gaussian noise per coordinate")
    group_size: int = Field(1, gt=0, description="consecutive features that fire together; 1: independent")
    correlation: float = Field(0.0, ge=0, lt=1, description="correlation of the Gaussians behind firing in a group")
    children_per_parent: int = Field(
        0, ge=0, description="of each 1 + n consecutive features, the first is parent of the rest; 0: no hierarchy"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PlantedConfig":
        if self.coefficient_low > self.coefficient_high:
            raise ValueError("coefficient_low exceeds coefficient_high")
        if self.mean_active > self.n_features / 4:
            raise ValueError("mean_active exceeds a quarter of n_features: that is not sparse")
        return self


class PlantedSection(PlantedConfig):
    """Rows with known atoms, where activations.source is planted; 16,384 of them are held out."""

    d_model: int = Field(64, gt=0, description="D, width of a row")
    n_features: int = Field(256, gt=0, description="F, number of planted atoms")
    mean_active: float = Field(4.0, gt=0, description="expected number of root features that fire per row")
    seed: int = Field(0, ge=0, description="decides the atoms and the rows; run.seed decides the dictionary's start")


class ActivationsConfig(FrozenConfig):
    """Where rows come from and how they are mixed."""

    source: Literal["live", "cached", "rows", "planted"] = Field(
        "live", description="run the host, or read its stored rows, or a file; planted: rows whose atoms are known"
    )
    path: LocalPath | None = Field(None, description="store directory (cached) or .safetensors / .npy file (rows)")
    heldout_path: LocalPath | None = Field(None, description="held-out rows file; without it the last 10 % of path")
    point: str = Field("blocks.2.hook_out", description="hook point of the host")
    dtype: Dtype = Field("float32", description="dtype of rows on every way: stored, buffered and read")
    host_batch: int = Field(16, gt=0, description="windows per forward pass of the host; part of the plan")
    ring_rows: int = Field(65_536, gt=0, description="rows in the shuffle ring")
    calibration_rows: int = Field(32_768, gt=0, description="kept rows measured before step 0")
    drop_outliers: bool = Field(True, description="drop rows whose norm exceeds 10 times the calibration's median")
    gradients: bool = Field(
        False, description="with each row dL/dx, field `grad` (a rows file trains with its own in any case)"
    )
    prefetch: int = Field(0, ge=0, description="host batches made ahead by a producer thread; changes no bit")

    @property
    def has_host(self) -> bool:
        """Whether rows come from a model; else from a file or a law."""
        return self.source in ("live", "cached")


class TrainingConfig(FrozenConfig):
    """Optimization. None (null in YAML) stands for the rule in the description."""

    n_tokens: int = Field(1_000_000, gt=0, description="kept rows to train on")
    batch_rows: int = Field(2048, gt=0, description="rows per optimizer step")
    lr: float | None = Field(None, gt=0, description="peak learning rate; null: 2e-4 / sqrt(F / 2^14)")
    schedule: Literal["linear_decay", "constant"] = Field("linear_decay", description="after warm-up")
    warmup_steps: int | None = Field(None, ge=0, description="null: min(1000, 5 % of the steps)")
    decay_fraction: float = Field(0.2, ge=0, le=1, description="last part of the run with linear decay to 0")
    clip_norm: float = Field(1.0, gt=0, description="global norm to which gradients are clipped")
    init_from: Annotated[str, BeforeValidator(_source)] | None = Field(
        None, description="dictionary or run, also hf://..., of the same kind and sizes to start from"
    )
    checkpoint_every_tokens: int | None = Field(None, gt=0, description="null: a tenth of n_tokens")
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints kept")
    impl: Literal["auto", "fused", "plain"] = Field("auto", description="training step: fused kernels or autograd")
    compute: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="matrix products of a step (sums, weights, updates: float32); auto: bf16 in hardware, if fused",
    )
    dead_after_tokens: int | None = Field(None, gt=0, description="null: min(10 million, 5 % of n_tokens)")


class EvaluationConfig(FrozenConfig):
    """Evaluation on held-out documents."""

    n_tokens: int = Field(200_000, gt=0, description="held-out tokens that an evaluation reads at most")
    n_ce_tokens: int = Field(50_000, gt=0, description="held-out tokens for loss recovered")
    n_features: int = Field(200, ge=0, description="features shown on the page")
    seed: int = Field(
        0, ge=0, description="decides what is sampled, and resampled; not run.seed: runs are judged alike"
    )
    run: tuple[str, ...] = Field(
        ("reconstruction", "sparsity", "loss_recovered"), description="names of evaluations; `all` is every one"
    )
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="fields of single evaluations: {steering: {doses: [0.1, 1]}}; they go before n_tokens"
    )


class LoggingConfig(FrozenConfig):
    """What is told while training."""

    every_steps: int = Field(10, gt=0, description="steps between lines of metrics.jsonl")
    progress: bool = Field(True, description="progress bar on stderr")
    wandb: Literal["off", "offline", "online"] = Field("off", description="mirror of metrics.jsonl")
    wandb_project: str = Field("saetools", description="project of the mirror")


class RunSection(FrozenConfig):
    """The run itself."""

    dir: LocalPath = Field(description="run directory")
    seed: int = Field(0, ge=0, description="decides initial weights, document order and shuffling")
    device: Device = Field("auto", description="auto: cuda, else cpu; mps: the host there, dictionaries on the CPU")
    threads: int | None = Field(None, gt=0, description="CPU threads of torch and numba; null: all cores")


class RunConfigBase(FrozenConfig):
    """A whole run, but for its dictionary."""

    host: HostConfig = Field(HostConfig(), description="subject model")
    corpus: CorpusConfig = Field(CorpusConfig(), description="text")
    activations: ActivationsConfig = Field(ActivationsConfig(), description="rows")
    planted: PlantedSection = Field(
        PlantedSection(), description="law of planted rows, read where activations.source is planted"
    )
    training: TrainingConfig = Field(TrainingConfig(), description="optimization")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="held-out evaluation")
    logging: LoggingConfig = Field(LoggingConfig(), description="metrics and progress")
    run: RunSection = Field(description="directory, seed, device")


@cache
def run_config_class(*dictionary_configs: type[FrozenModel]) -> type[RunConfigBase]:
    """RunConfig with `dictionary` discriminated by `kind` over the given config classes, without a default."""
    union: Any = reduce(or_, dictionary_configs)
    if len(dictionary_configs) > 1:
        union = Annotated[union, Field(discriminator="kind")]
    return create_model(
        "RunConfig",
        __base__=RunConfigBase,
        __doc__="The configuration of one run.",
        dictionary=(union, Field(description="the dictionary to train")),
    )
