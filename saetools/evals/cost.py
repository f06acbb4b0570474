"""What an evaluation cost: seconds, tokens per second, peak memory."""

import threading
import time
from types import TracebackType

import psutil
import torch

SAMPLE_SECONDS = 0.05


class Cost:
    """Context manager that measures its block: `seconds`, `n_tokens` (count with `tick`) and `peak_bytes`.

    Peak memory is the greatest resident size of the process, sampled 20 times a second, in which another evaluation's
    leftovers count; on CUDA, `peak_device_bytes` is the allocator's peak.
    """

    def __init__(self) -> None:
        self.seconds, self.n_tokens, self.peak_bytes, self.peak_device_bytes = 0.0, 0, 0, 0
        self._process, self._done = psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory of an evaluation", daemon=True)

    def tick(self, n_tokens: int) -> None:
        """Count tokens that were worked on."""
        self.n_tokens += n_tokens

    def __enter__(self) -> "Cost":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self._started
        if torch.cuda.is_available():
            self.peak_device_bytes = torch.cuda.max_memory_allocated()

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
            if self._done.wait(SAMPLE_SECONDS):
                return

    def __str__(self) -> str:
        text = f"{self.n_tokens:,} tokens, {self.n_tokens / max(self.seconds, 1e-9):,.0f} tokens/s, "
        text += f"peak memory {self.peak_bytes / 2**20:,.0f} MiB"
        return text + (f", on the device {self.peak_device_bytes / 2**20:,.0f} MiB" if self.peak_device_bytes else "")
