"""What the host predicts without a dictionary, kept for the next dictionary that is judged on the same windows.

Of the four runs of `loss_recovered.py` three know nothing of the dictionary. A `Subject` that carries `References` has
them made once: their figures (40 bytes per prediction) and, while they fit, the host's own logits.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from saetools.evals.splicing import Windows

KEPT_BYTES = 512 << 20


@dataclass(frozen=True)
class Reference:
    """Some windows and what is said of them without a dictionary."""

    windows: Windows
    logits_NV: Tensor | None  # the host's own; None where they did not fit
    columns_NC: Tensor  # float64, on the CPU


class References:
    """The references of the last key asked for, with logits of `limit_bytes` at most."""

    def __init__(self, limit_bytes: int = KEPT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._key: Hashable = None
        self._kept: list[Reference] = []

    def read(self, key: Hashable, make: Callable[[], Iterator[Reference]]) -> Iterator[Reference]:
        """Those kept under the key, else what `make` gives, which is kept if it is read to its end."""
        if key == self._key:
            yield from self._kept
            return
        kept, left = [], self.limit_bytes
        for reference in make():
            yield reference
            assert reference.logits_NV is not None
            left -= reference.logits_NV.numel() * reference.logits_NV.element_size()
            kept.append(reference if left >= 0 else replace(reference, logits_NV=None))
        self._key, self._kept = key, kept
