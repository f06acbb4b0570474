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
    """`numba.njit` with its cache on, where there is a place for it."""

    def compiled(function: Callable) -> Any:
        try:
            made = numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            _say_not_kept()
            return numba.njit(**options)(function)
        if not numba.config.DISABLE_JIT:  # type: ignore[attr-defined]  # else it is the function itself
            forget_outdated(Path(__file__).parent, Path(made.stats.cache_path))
        return made

    return compiled


parallel: Any = kept(parallel=True, fastmath=FASTMATH, error_model="numpy", nogil=True)
serial: Any = kept(fastmath=FASTMATH, error_model="numpy", nogil=True)
inline: Any = numba.njit(fastmath=FASTMATH, error_model="numpy", inline="never")

__all__ = ["inline", "parallel", "prange", "serial"]
