"""The numbers that a training config stands for, resolved once at the start of a run, and the learning rate."""

import math

from pydantic import Field

from saetools.config import TrainingConfig
from saetools.records import FrozenModel

REFERENCE_LR = 2e-4
REFERENCE_FEATURES = 2**14
"""lr = 2e-4 / sqrt(F / 2^14): Gao et al. 2024 (arXiv 2406.04093), section 2.3 and appendix A.3."""


class Plan(FrozenModel):
    """A run's resolved numbers. It is in every checkpoint: a longer run keeps all but n_steps and n_tokens."""

    n_tokens: int = Field(description="rows asked for")
    n_steps: int = Field(description="optimizer steps; the last batch is whole, so up to batch_rows - 1 more rows")
    batch_rows: int = Field(description="rows per step")
    peak_lr: float = Field(description="learning rate after warm-up")
    warmup_steps: int = Field(description="steps of linear warm-up")
    decay_fraction: float = Field(description="last part of the run with linear decay; 0 is constant")
    clip_norm: float = Field(description="bound of the global gradient norm")
    dead_after_tokens: int = Field(description="rows without firing after which a feature counts as dead")

    def lr(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: peak * min(1, (step + 1) / warmup, (n_steps - step) / decay).

        decay = decay_fraction * n_steps, in steps. The first step has 1 / warmup of the peak, the last 1 / decay.
        """
        warm = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        decay_steps = self.decay_fraction * self.n_steps
        cool = (self.n_steps - step) / decay_steps if decay_steps else 1.0
        return self.peak_lr * max(0.0, min(1.0, warm, cool))


def make_plan(config: TrainingConfig, n_features: int) -> Plan:
    """The plan of a new run: what the config leaves to a rule is resolved here and nowhere else."""
    n_steps = math.ceil(config.n_tokens / config.batch_rows)
    warmup = config.warmup_steps
    return Plan(
        n_tokens=config.n_tokens,
        n_steps=n_steps,
        batch_rows=config.batch_rows,
        peak_lr=config.lr or REFERENCE_LR / math.sqrt(n_features / REFERENCE_FEATURES),
        warmup_steps=min(1000, n_steps // 20) if warmup is None else warmup,
        decay_fraction=0.0 if config.schedule == "constant" else config.decay_fraction,
        clip_norm=config.clip_norm,
        dead_after_tokens=config.dead_after_tokens or max(1, min(10_000_000, config.n_tokens // 20)),
    )


def extended(plan: Plan, n_tokens: int) -> Plan:
    """The plan of a run under way, going on to n_tokens in all; its other numbers stay what they were."""
    return plan.model_copy(update={"n_tokens": n_tokens, "n_steps": math.ceil(n_tokens / plan.batch_rows)})


def checkpoint_steps(config: TrainingConfig) -> int:
    """Steps between checkpoints, at least 1."""
    tokens = config.checkpoint_every_tokens or config.n_tokens / 10
    return max(1, round(tokens / config.batch_rows))
