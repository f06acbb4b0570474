"""Exchange rows of a large table with rows of a small one: one step of a shuffle ring."""

from torch import Tensor

from saetools.kernels.backend import Impl, operation, resolve
from saetools.kernels.swap_rows import reference


@operation
def swap_rows_(table: Tensor, slots_N: Tensor, incoming: Tensor, taken: Tensor, *, impl: Impl = "auto") -> None:
    """taken = table[slots]; table[slots] = incoming.

    table is [R, ...], incoming and taken [N, ...] of one dtype, any; slots_N (int64) are distinct and within the table.
    table and taken are contiguous and share no memory with each other or with incoming.
    """
    assert table.is_contiguous() and taken.is_contiguous() and len(slots_N) == len(incoming)
    assert incoming.shape == taken.shape and incoming.shape[1:] == table.shape[1:]
    assert incoming.dtype == taken.dtype == table.dtype
    if len(slots_N) == 0 or incoming[0].nbytes == 0:
        return
    first, last = (int(slot) for slot in slots_N.aminmax())
    if first < 0 or last >= len(table):  # compiled loops would write there
        raise ValueError(f"slots lie in {first}..{last}, but the table has {len(table)} rows")
    if resolve(impl, table, triton=False, any_dtype=True) == "numba":
        from saetools.kernels.swap_rows import cpu

        cpu.swap_rows_(table, slots_N, incoming, taken)
    else:
        reference.swap_rows_(table, slots_N, incoming, taken)


__all__ = ["swap_rows_"]
