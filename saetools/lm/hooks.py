"""Hooks on a bridge's points: attached for the length of a `with`, gone after it whatever happens inside."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from einops import rearrange
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from saetools.errors import MismatchError

Watch = Callable[[Tensor], Tensor | None]
"""x_BTD -> what replaces it, or None to leave it."""


class Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass that has gone far enough
    """Raised by a hook when nothing further of a forward pass is wanted."""


@contextmanager
def hooked(hook_points: Mapping[str, HookPoint], watches: Mapping[str, Watch]) -> Iterator[None]:
    """Each watch sees the activations at its point as x_BTD, heads and their widths flattened into D."""
    with ExitStack() as stack:
        for point, watch in watches.items():
            stack.enter_context(_attached(hook_points[point], point, watch))
        yield


@contextmanager
def _attached(hook_point: HookPoint, point: str, watch: Watch) -> Iterator[None]:
    def replace(tensor: Tensor, *, hook: HookPoint) -> Tensor | None:
        if tensor.ndim < 3:  # token ids and positions: no vectors
            return None
        x_BTD = rearrange(tensor, "b t ... -> b t (...)")
        new_BTD = watch(x_BTD)
        if new_BTD is None:
            return None
        if new_BTD.shape != x_BTD.shape or new_BTD.dtype != x_BTD.dtype:
            raise MismatchError(
                f"An edit at {point} returned {tuple(new_BTD.shape)} of {new_BTD.dtype}; "
                f"it was given {tuple(x_BTD.shape)} of {x_BTD.dtype} and must return the same."
            )
        return new_BTD.view_as(tensor)

    handle = hook_point.add_hook(replace)
    try:
        yield
    finally:
        handle.hook.remove()
        hook_point.fwd_hooks.remove(handle)
