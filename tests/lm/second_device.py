"""A device beside the CPU for tests on machines that have none: what Apple's GPUs refuse raises here too.

`with SecondDevice():` tensors may be put on "mps". Their numbers lie on the CPU, but tensors of two devices do not mix
(numbers of no dimension may), and nothing there is float64.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("mps:0")
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
MAY_MIX = MOVES | {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default}  # an index moves by itself


class There(Tensor):
    """A tensor that says that it is on the second device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "There":
        if inner.dtype == torch.float64:
            raise TypeError("the second device has no float64")
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)  # type: ignore[assignment]  # autograd, below Python, takes it for the CPU

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cpu")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor of the second device is no numpy array; use .cpu() first")

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
        if device is None and (dtype is None or dtype == self.dtype):
            return self
        return torch.ops.aten._to_copy.default(self, dtype=dtype, device=device or DEVICE)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation with what is there unpacked, and its results packed where they belong."""
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [value for value in given if isinstance(value, There)]
    here = [value for value in given if not isinstance(value, There) and value.dim() > 0]
    asked = kwargs.get("device")
    if there and here and func not in MAY_MIX:
        raise RuntimeError(f"{func} mixes tensors of two devices")
    if asked is not None and torch.device(asked).type == DEVICE.type:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs.pop("non_blocking", None) if func in MOVES else None
    belongs = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
    if func is torch.ops.aten.copy_.default:
        belongs = isinstance(args[0], There)
    known = {id(value.inner): value for value in there}
    found = func(
        *tree_map(lambda v: v.inner if isinstance(v, There) else v, args),
        **tree_map(lambda v: v.inner if isinstance(v, There) else v, kwargs),
    )

    def packed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return There(value) if belongs else value

    return tree_map(packed, found)


class SecondDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on the second device, or moved to it; modules get new parameters."""

    def __enter__(self) -> "SecondDevice":
        self.before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(self.before)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})
