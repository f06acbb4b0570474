"""metrics.jsonl: the record of a run. One line per logged step, a pure function of config and data.

Wall-clock figures go to timing.jsonl, so that a killed and resumed run leaves the same bytes as a straight one.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

from saetools import atomic
from saetools.training.step import StepResult


def metrics_record(
    step: int, n_tokens: int, lr: float, n_skipped: int, n_features: int, result: StepResult
) -> dict[str, Any]:
    """The line of one step: `step` steps and `n_tokens` rows were done with it. Losses are unweighted but `loss`."""
    return {
        "step": step,
        "n_tokens": n_tokens,
        "lr": lr,
        "loss": result.loss.item(),
        **{f"loss/{name}": value.item() for name, value in result.losses.items()},
        "l0": result.l0.item(),
        "n_dead": int(result.n_dead),
        "dead_fraction": int(result.n_dead) / n_features,
        "grad_norm": result.grad_norm.item(),
        "n_skipped": n_skipped,
    }


class MetricsLog:
    """An append-only JSONL file that can be cut back to what a checkpoint knows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Add one line; numbers that JSON cannot hold become the strings nan, inf and -inf."""
        atomic.append_text(self.path, json.dumps({key: _json_number(value) for key, value in record.items()}) + "\n")

    def sync(self) -> int:
        """Make the lines durable; the length in bytes, for the checkpoint."""
        return atomic.sync_file(self.path)

    def cut_back(self, n_bytes: int) -> None:
        """Forget lines after the first n_bytes: steps after the checkpoint are done, and logged, again."""
        atomic.truncate(self.path, n_bytes)


class TimingLog:
    """timing.jsonl: rows per second between logged steps of this process."""

    def __init__(self, path: Path, n_tokens: int) -> None:
        self.log = MetricsLog(path)
        self.since, self.n_tokens = time.perf_counter(), n_tokens

    def append(self, step: int, n_tokens: int) -> None:
        """Write the seconds and tokens per second since the last line."""
        now = time.perf_counter()
        seconds = now - self.since
        self.log.append(
            {"step": step, "seconds": round(seconds, 6), "tokens_per_second": (n_tokens - self.n_tokens) / seconds}
        )
        self.since, self.n_tokens = now, n_tokens


def _json_number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
