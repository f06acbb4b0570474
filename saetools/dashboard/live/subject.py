"""What the live app may be handed besides a store: the model as plain callables, other dictionaries, a run's record."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from saetools.dashboard.comparison import Comparison
from saetools.errors import DataError
from saetools.features.records import PromptFirings
from saetools.features.store import FeatureStore

MAX_WAITING = 8
MAX_WAIT_SECONDS = 60.0
MAX_PER_MINUTE = 120


@dataclass(frozen=True)
class Steering:
    """One request of the steering playground; see `features.steering.steer` for what the fields do."""

    prompt: str
    feature: int
    how: str = "add"
    strength: float = 1.0
    value: float = 1.0
    n_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0


Fire = Callable[[str], PromptFirings]
Steer = Callable[[Steering], tuple[str, str]]  # (baseline, steered) continuations


@dataclass(frozen=True)
class Subject:
    """What the app shows. Parts that are None have no tab."""

    store: FeatureStore | None  # None: a run that trains and has no checkpoint yet
    fire: Fire | None = None
    steer: Steer | None = None
    comparison: Comparison | None = None
    metrics: Path | None = None
    title: str = ""  # where there is no store to name it


class OneAtATime:
    """Lets one job use the model; at most 8 wait, 60 seconds each, and at most 120 start in a minute.

    DataError for who comes on top or in vain.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._waiting = threading.Lock(), threading.BoundedSemaphore(MAX_WAITING + 1)
        self._clock, self._started = clock, deque[float](maxlen=MAX_PER_MINUTE)

    @contextmanager
    def turn(self) -> Iterator[None]:
        now = self._clock()
        if len(self._started) == MAX_PER_MINUTE and now - self._started[0] < 60:
            raise DataError(f"more than {MAX_PER_MINUTE} requests came in a minute. Try again in a moment.")
        self._started.append(now)
        if not self._waiting.acquire(blocking=False):
            raise DataError(f"the model is busy and {MAX_WAITING} requests wait already. Try again in a moment.")
        try:
            if not self._lock.acquire(timeout=MAX_WAIT_SECONDS):
                raise DataError(f"the model was busy for {MAX_WAIT_SECONDS:.0f} seconds. Try again in a moment.")
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self._waiting.release()
