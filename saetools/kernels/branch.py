"""Work that runs beside what is launched next: a second stream of the device, a branch of a graph that is captured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


@cache
def shared_stream(device: torch.device, priority: int = 0) -> torch.cuda.Stream:
    """One for all who ask for it: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device, priority=priority)


class Branch:
    """On a CPU (triton's interpreter) work is done where it is started.

    Nothing launched between start and join may write what the work reads or writes, nor read what it writes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # of high priority: blocks of others, which fill the device, would all be begun before the first of its own
        self.stream = shared_stream(device, -1) if device.type == "cuda" else None

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Launch the work after all that was launched so far. The result joins: what is launched after its call waits
        for the work, whose result it gives."""
        if self.stream is None:
            result = work()
            return lambda: result
        stream = self.stream
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            result = work()
            done = stream.record_event()

        def join() -> T:
            torch.cuda.current_stream(self.device).wait_event(done)
            return result

        return join

    @contextmanager
    def joined_after_errors(self) -> Iterator[None]:
        """What was started joins before an error leaves: a capture cannot end with a branch that is loose, and memory
        that the error frees may be written by the branch."""
        try:
            yield
        except BaseException:
            if self.stream is not None:
                torch.cuda.current_stream(self.device).wait_stream(self.stream)
            raise
