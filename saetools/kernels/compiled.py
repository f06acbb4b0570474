"""Decorators of the numba kernels: imported by `cpu.py` files alone, so numba is needed only where it runs.

`fastmath=True` would let the compiler assume that there are no NaNs, and guards against them would pass vacuously;
only the flags that reorder and contract sums are given. Loops are split over threads in fixed blocks of rows or
features, so no floating-point sum depends on scheduling or on the number of threads.

Machine code is cached beside the sources, or else in the user's cache, or where NUMBA_CACHE_DIR says; where none of
them can be written to, it is compiled anew in each process. Numba renews it when the file of the function itself has
changed, but not when one has that it calls: `forget_outdated` sees to that.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import prange
from numba.core.caching import FunctionCache


@cache
def forget_outdated(sources: Path, kept_in: Path) -> None:
    """Remove machine code kept in a folder that is older than any source file in `sources` or below."""
    newest = max((source.stat().st_mtime for source in sources.rglob("*.py")), default=0.0)
    for code in kept_in.glob("*.nb[ic]"):
        with suppress(OSError):  # another process was faster, or the folder is not ours to write to
            if code.stat().st_mtime < newest:
                code.unlink()


FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


@cache
def _say_not_kept() -> None:
    logging.getLogger(__name__).warning(
        "machine code of the kernels cannot be kept, since neither their folder nor your cache can be written to: "
        "every process compiles it anew, which takes a minute. Set NUMBA_CACHE_DIR to a folder that can."
    )


def kept(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit` with a cache, where there is a place for it."""

    def compiled(function: Callable) -> Any:
        made = numba.njit(**options)(function)
        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            return made  # which is the function itself
        try:
            made._cache = _Cache(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            _say_not_kept()
        else:
            forget_outdated(Path(__file__).parent, Path(made._cache.cache_path))
        return made

    return compiled


class _Cache(FunctionCache):
    """Numba's, from which what is damaged is made anew, and which goes without what cannot be written."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # an empty file, as a power cut leaves it, is unpickled to anything
            with suppress(OSError):
                self.flush()
            return None
        # two processes that begin together give two signatures one file
        return found if found is None or tuple(found.signature.args) == tuple(sig) else None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:  # a full disk
            _say_not_kept()


parallel: Any = kept(parallel=True, fastmath=FASTMATH, error_model="numpy", nogil=True)
serial: Any = kept(fastmath=FASTMATH, error_model="numpy", nogil=True)
inline: Any = numba.njit(fastmath=FASTMATH, error_model="numpy", inline="never")

__all__ = ["inline", "parallel", "prange", "serial"]
