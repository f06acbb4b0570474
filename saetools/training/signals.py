"""SIGTERM and SIGINT while training: the first is only noted, the second ends the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """The signal that asked the run to stop, or None.

    While `nothing_to_save` (before the first step), the first signal ends the process by SystemExit where it lands.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.nothing_to_save = False

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler: a flag and nothing else, so that it can land anywhere, in a save too."""
        if self.signal is not None:
            os._exit(128 + number)  # what is on disk is whole at every instant
        self.signal = number
        if self.nothing_to_save:
            raise SystemExit(128 + number)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note stopping signals while the block runs; outside the main thread, where Python allows no handlers, nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in STOPPING}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
