"""Host batches made ahead of their use by a producer thread. It changes no bit, only when the work is done."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

from saetools.activations.base import NumberedBatches, RowSource, WrappedSource

T = TypeVar("T")

_POLL_SECONDS = 0.1


class PrefetchedSource(WrappedSource):
    """A RowSource whose batches are made up to `depth` ahead by a thread of each iterator of its own."""

    def __init__(self, source: RowSource, depth: int) -> None:
        super().__init__(source)
        self.depth = depth

    def batches(self, start: int = 0) -> NumberedBatches:
        return ahead(lambda: self.source.batches(start), self.depth)


def ahead(make_items: Callable[[], Generator[T, None, None]], depth: int) -> Generator[T, None, None]:
    """The items of `make_items()`, made up to `depth` ahead by a thread (depth 0: made when asked for).

    An exception of the producer is raised where the consumer would have met it. Closing the generator, or leaving it
    by an exception, stops and joins the thread and closes the items.
    """
    if depth == 0:
        yield from make_items()
        return
    made: Queue[_Made[T]] = Queue(maxsize=depth)
    stopping = Event()
    thread = Thread(target=_produce, args=(make_items, made, stopping), name="saetools-prefetch", daemon=True)
    thread.start()
    try:
        while not (next_ := made.get()).is_end:
            yield next_.value()
    finally:
        stopping.set()
        thread.join()


@dataclass(frozen=True)
class _Made(Generic[T]):
    """What the producer hands over: an item, the exception that it met, or the end."""

    item: T | None = None
    error: BaseException | None = None
    is_end: bool = False

    def value(self) -> T:
        if self.error is not None:
            raise self.error
        return self.item  # type: ignore[return-value]


def _produce(make_items: Callable[[], Generator[T, None, None]], made: "Queue[_Made[T]]", stopping: Event) -> None:
    try:
        with closing(make_items()) as items:
            for item in items:
                if not _put(made, _Made(item), stopping):
                    return
    except BaseException as error:  # handed to the consumer, which raises it
        _put(made, _Made(error=error), stopping)
    else:
        _put(made, _Made(is_end=True), stopping)


def _put(made: "Queue[_Made[T]]", item: "_Made[T]", stopping: Event) -> bool:
    """Whether the item was taken before the consumer stopped."""
    while not stopping.is_set():
        try:
            made.put(item, timeout=_POLL_SECONDS)
            return True
        except Full:
            continue
    return False
