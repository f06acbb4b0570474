"""What every host offers to the rest of the house."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor

from saetools.records import PointSpec
from saetools.text.base import Tokenize

Edit = Callable[[Tensor], Tensor]
"""x_BTD -> x_BTD of the same shape and dtype: what a hook does to the activations at a point."""


class Host(Protocol):
    """A frozen transformer with named points. No method changes its weights or leaves a hook behind."""

    name: str
    prepend_bos: bool  # whether windows begin with BOS: asked for, and the tokenizer has one
    device: str

    @property
    def tokenize(self) -> Tokenize:
        """From text to token ids."""
        ...

    @property
    def max_tokens(self) -> int:
        """The longest window that the host takes."""
        ...

    def points(self) -> list[str]:
        """Canonical names of all points whose activations are vectors per token, shallow to deep."""
        ...

    def canonical(self, point: str) -> str:
        """The canonical name of a point given by any of its names; PointError names the nearest otherwise."""
        ...

    def spec(self, point: str, context_tokens: int | None = None) -> PointSpec:
        """The record that says what vectors at this point are."""
        ...

    def in_stream(self, point: str) -> bool:
        """Whether vectors at this point are of the residual stream, or added to it: W_U times one says what it does."""
        ...

    def activations(self, ids_BT: Tensor, points: Sequence[str]) -> dict[str, Tensor]:
        """x_BTD at each point (canonical names), by one forward pass that stops at the deepest of them."""
        ...

    def logits(self, ids_BT: Tensor, edits: Mapping[str, Edit] | None = None) -> Tensor:
        """logits_BTV, with the activations at the given points replaced by what each edit returns."""
        ...

    def activations_and_gradients(
        self, ids_BT: Tensor, points: Sequence[str], keep_BT: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """(x_BTD, g_BTD) at each point: g = d(sum of next-token losses, nats, over targets with keep) / dx."""
        ...

    @contextmanager
    def editing(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """While active, every forward pass of this host, generation included, applies the edits."""
        ...

    def generate(
        self, prompt: str, n_tokens: int, temperature: float = 0.0, seed: int = 0, until: float | None = None
    ) -> str:
        """The prompt's continuation (without the prompt). `until`: DataError once time.monotonic() is past it."""
        ...

    def unembedding(self) -> tuple[Tensor, Tensor | None]:
        """(W_U_VD, final norm's weight_D or None): row v is the direction that raises the logit of token v."""
        ...

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token of one window, such that they concatenate to the decoding of the whole."""
        ...
