"""What is the same for all dictionaries judged on the same text: labelled rows, and predictions without a dictionary.

A `Subject` that carries `References` has them made once. Labels and the rows sampled by them (labelled.py) are kept
while they fit. Of the four runs of `loss_recovered.py` three know nothing of the dictionary: their windows and figures
(about 100 bytes per prediction) are kept and, while they fit, the host's own logits.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from saetools.evals.splicing import Windows

if TYPE_CHECKING:
    from saetools.evals.labelled import LabelledRows

LOGIT_BYTES, FIGURE_BYTES, LABELLED_BYTES = 512 << 20, 512 << 20, 256 << 20


@dataclass(frozen=True)
class Reference:
    """Some windows and what is said of them without a dictionary."""

    windows: Windows
    logits_NV: Tensor | None  # the host's own; None where they did not fit
    columns_NC: Tensor  # float64, on the CPU

    @property
    def figure_bytes(self) -> int:
        """Of the windows and the columns."""
        return sum(t.nbytes for t in [*vars(self.windows).values(), self.columns_NC] if isinstance(t, Tensor))


class References:
    """Labelled rows, and the references of the last key asked for: logits of `logit_bytes` at most, all or none else.

    Where windows and figures take more than `figure_bytes`, nothing is kept.
    """

    def __init__(self, logit_bytes: int = LOGIT_BYTES, figure_bytes: int = FIGURE_BYTES) -> None:
        self.logit_bytes, self.figure_bytes = logit_bytes, figure_bytes
        self._key: Hashable = None
        self._kept: list[Reference] = []
        self._labelled: dict[Hashable, LabelledRows] = {}

    def labelled(self, key: Hashable) -> "LabelledRows | None":
        """The rows kept under the key."""
        return self._labelled.get(key)

    def keep_labelled(self, key: Hashable, rows: "LabelledRows") -> None:
        """Keep rows for the next dictionary, if they fit beside those kept."""
        if rows.x_ND.nbytes + sum(kept.x_ND.nbytes for kept in self._labelled.values()) <= LABELLED_BYTES:
            self._labelled[key] = rows

    def read(self, key: Hashable, make: Callable[[], Iterator[Reference]]) -> Iterator[Reference]:
        """Those kept under the key, else what `make` gives, which is kept if it fits and is read to its end."""
        if key == self._key:
            yield from self._kept
            return
        self._key, self._kept = None, []
        kept: list[Reference] = []
        logits_left, figures_left = self.logit_bytes, self.figure_bytes
        for reference in make():
            yield reference
            assert reference.logits_NV is not None
            logits_left -= reference.logits_NV.nbytes
            figures_left -= reference.figure_bytes
            if figures_left >= 0:
                kept.append(reference if logits_left >= 0 else replace(reference, logits_NV=None))
            else:
                kept.clear()
        if figures_left >= 0:
            self._key, self._kept = key, kept
