"""A sparse code turned feature-major: which slots belong to each feature."""

from torch import Tensor

from saetools.kernels.backend import Impl, operation, resolve
from saetools.kernels.by_feature import reference


@operation
def by_feature(values_M: Tensor, indices_M: Tensor, n_features: int, *, impl: Impl = "auto") -> tuple[Tensor, Tensor]:
    """offsets_F1 and slots (int32): feature f owns slots[offsets[f] : offsets[f + 1]], slot numbers ascending.

    values_M and indices_M (int32) are the flat slots of a code of either layout; slots of value 0 are left out.
    IndexError where an index does not lie in 0..n_features - 1, ValueError where there is not one for each value.
    """
    values_M, indices_M = values_M.detach().contiguous(), indices_M.contiguous()
    if values_M.ndim != 1 or values_M.shape != indices_M.shape:
        raise ValueError(f"values {tuple(values_M.shape)} and indices {tuple(indices_M.shape)} must both be [M]")
    if len(indices_M):
        low, high = (int(v) for v in indices_M.aminmax())
        if low < 0 or high >= n_features:
            raise IndexError(f"feature indices span {low}..{high}; the dictionary has {n_features} features")
    if resolve(impl, values_M, triton=False) == "numba":
        from saetools.kernels.by_feature import cpu

        return cpu.by_feature(values_M, indices_M, n_features)
    return reference.by_feature(values_M, indices_M, n_features)


__all__ = ["by_feature"]
