"""Compile every Triton launch of a step for Hopper without a GPU, and say what registers and spills it takes.

    python tests/kernels/offline.py [a b c]

Launches are made on tensors without memory and recorded in place of running; each distinct one is compiled with the
compiler that triton brings. Prints a row per kernel; exits with 1 where one spills, or writes rows a number at a time.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / "saetools-offline-kernels"))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

SHAPES = {  # N, D, F, k
    "a": (4096, 768, 24576, 32),
    "b": (4096, 2304, 65536, 64),
    "c": (8192, 4096, 131072, 64),
}
TYPES = {
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
}
ROWS = "_centre", "_group_max", "_decode_loss", "_residual", "_windows", "_measure", "_update"
"""Kernels that write whole rows."""
MOST_NARROW = 8
"""Stores of at most 4 bytes that those have beside: single numbers, and none of a row."""
TARGET = GPUTarget("cuda", 90, 32)


def record(work: Callable[[], Any]) -> list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]]:
    """The launches that `work` makes."""
    found: list[Any] = []
    real = JITFunction.run
    JITFunction.run = lambda self, *args, grid, warmup, **kwargs: found.append((self, args, kwargs))
    try:
        work()
    finally:
        JITFunction.run = real
    return found


def compiled(fn: JITFunction, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Registers, spilled bytes and shared memory of one launch."""
    values = dict(zip(fn.arg_names, args)) | {name: v for name, v in options.items() if name in fn.arg_names}
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(fn.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, TensorDescriptor):
            block = ",".join(str(n) for n in value.block_shape)
            signature[parameter.name] = f"tensordesc<{TYPES[value.base.dtype]}[{block}]>"
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif isinstance(value, int) and value == 1:
            signature[parameter.name] = "constexpr"
            constants[(place,)] = 1
        elif isinstance(value, int):
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            raise TypeError(f"{fn.__name__}: {parameter.name} is {type(value).__name__}")
    settings = {name: options[name] for name in ("num_warps", "num_stages", "maxnreg") if options.get(name)}
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    kernel = triton.compile(source, target=TARGET, options=settings)
    return {"warps": settings.get("num_warps", 4), "shared": kernel.metadata.shared} | _resources(kernel)


def _resources(kernel: Any) -> dict[str, int]:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptxas = next(path for name in ("ptxas-blackwell", "ptxas") if (path := folder / name).exists())  # the newer one
    with tempfile.TemporaryDirectory() as work:
        ptx = Path(work) / "kernel.ptx"
        ptx.write_text(kernel.asm["ptx"])
        command = [str(ptxas), "-v", "--gpu-name", "sm_90a", str(ptx), "-o", str(Path(work) / "kernel.cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    numbers = {
        name: int(match.group(1)) if (match := re.search(pattern, report)) else 0
        for name, pattern in (("registers", r"Used (\d+) registers"), ("spilled", r"(\d+) bytes spill stores"))
    }
    stores = re.findall(r"st\.global\S*?((?:\.v\d)?\.b(?:8|16|32))\s", kernel.asm["ptx"])
    narrow = sum(not store.startswith(".v") for store in stores)
    return numbers | {"narrow": narrow, "wgmma": len(re.findall("wgmma.mma_async", kernel.asm["ptx"]))}


def launches(shape: str) -> list[Any]:
    """All launches of a step at a shape, exact and lagged, and of the other operations."""
    from tests.kernels.meta_step import run_everything

    return record(lambda: run_everything(*SHAPES[shape]))


def main(shapes: list[str]) -> int:
    failed = False
    print(f"{'kernel':24s} shape warps registers spilled shared narrow wgmma")
    for shape in shapes:
        seen = set()
        for fn, args, options in launches(shape):
            key = (fn.__name__, tuple(sorted((k, str(v)) for k, v in options.items())))
            if key in seen:
                continue
            seen.add(key)
            row = compiled(fn, args, options)
            tried = fn.__name__ == "_update" and (options["HELD"] or options["maxnreg"] is None)
            most = 64 if tried else 0  # a capture times those beside others before it uses one
            wrong = "   SPILLS" * (row["spilled"] > most)
            wrong += "   NARROW STORES" * (fn.__name__ in ROWS and row["narrow"] > MOST_NARROW)
            failed |= bool(wrong)
            print(
                f"{fn.__name__:24s} {shape:5s} {row['warps']:5d} {row['registers']:9d} {row['spilled']:7d} "
                f"{row['shared']:6d} {row['narrow']:6d} {row['wgmma']:5d}{wrong}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    raise SystemExit(main(sys.argv[1:] or list(SHAPES)))
