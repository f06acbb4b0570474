"""The program that opens a .pt file: run by `pt.py` as a process of its own, it needs torch and safetensors alone.

    python -I pt_sandbox.py FILE OUT_DIRECTORY JSON_LIST_OF_CLASSES

Before it opens the file it gives up the network, limits its memory and time, and from then on refuses (by an audit
hook, which cannot be removed) connections, processes, imports, compiling code and all files but FILE and its own two.
torch's weights-only unpickler reads the file. Objects of the classes named become inert records of what they hold.
Dense tensors go to tensors.safetensors, numbers and texts to values.json, by dotted path. Ends with code 1 and the
reason on stderr where the file holds anything else.
"""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

TENSORS, VALUES = "tensors.safetensors", "values.json"
MOST_ENTRIES, MOST_DEPTH, MOST_LIST = 100_000, 20, 10_000
SPARE_BYTES = 512 << 20
_REBUILD = {
    "collections OrderedDict",
    "torch device",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch.storage UntypedStorage",
}
_STORAGE = re.compile(r"torch (Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool|Untyped)Storage")
_DTYPE = re.compile(r"torch (float|bfloat|int|uint)\d+|torch bool")
_OBJECT = re.compile(r"(torch\.nn\.modules\.[a-z_]+|overcomplete(\.[a-z_]+)+) \w+")
_DENIED = (
    *("socket.", "subprocess.", "ctypes.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "shutil."),
    *("os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "os.startfile", "os.remove", "os.rename"),
    *("os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.putenv", "os.kill"),
    *("import", "compile", "exec", "code.__new__", "function.__new__", "pty.", "signal.", "mmap."),
)


class Refused(Exception):  # noqa: N818  # not an error: a verdict
    """What the file holds is not taken."""


class Record:
    """What an object of a foreign class held; it can do nothing."""

    name = ""

    def __init__(self, *arguments: object) -> None:
        pass


def is_object(function: str) -> bool:
    """Whether a pickle's "module name" is a class whose objects become records."""
    return _OBJECT.fullmatch(function) is not None


def is_allowed(function: str) -> bool:
    """Whether a pickle may ask for this "module name"."""
    rebuilds = function in _REBUILD or _STORAGE.fullmatch(function) or _DTYPE.fullmatch(function)
    return bool(rebuilds) or is_object(function) or function in ("builtins set", "__builtin__ set")


def convert(source: str, out: str, objects: list[str]) -> None:
    """Read SOURCE with the weights-only unpickler and write the two files. Raises Refused."""
    import torch
    from safetensors.torch import save_file

    records = [
        (type("Record", (Record,), {"name": name.replace(" ", ".")}), name.replace(" ", ".")) for name in objects
    ]
    with torch.serialization.safe_globals([*records, set]):
        held = torch.load(source, map_location="cpu", weights_only=True, mmap=False)
    with open(source, "rb") as file:  # noqa: PTH123  # no import of pathlib in here
        size = file.seek(0, 2)
    tensors: dict[str, Any] = {}
    values: dict[str, Any] = {}
    classes: dict[str, str] = {}
    _Walk(tensors, values, classes, size).take("", held, 0)
    if not tensors:
        raise Refused("it holds no tensor.")
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, f"{out}/{TENSORS}")
    with open(f"{out}/{VALUES}", "w") as file:  # noqa: PTH123
        json.dump({"values": values, "classes": classes}, file)


class _Walk:
    """Collects tensors, plain values and class names by dotted path; Refused on anything else."""

    def __init__(self, tensors: dict[str, Any], values: dict[str, Any], classes: dict[str, str], size: int) -> None:
        self.tensors, self.values, self.classes, self.size = tensors, values, classes, size
        self.n_bytes = 0

    def take(self, path: str, value: Any, depth: int) -> None:
        import torch

        if depth > MOST_DEPTH or len(self.tensors) + len(self.values) + len(self.classes) > MOST_ENTRIES:
            raise Refused("it is nested too deeply, or holds too many entries.")
        if isinstance(value, torch.Tensor):
            self._tensor(path, value)
        elif isinstance(value, Record):
            self.classes[path] = value.name
            self._object(path, vars(value), depth)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str | int):
                    raise Refused(f"it has a key of type {type(key).__name__}.")
                self.take(f"{path}.{key}" if path else str(key), item, depth + 1)
        elif value is None or isinstance(value, bool | int | float | str):
            self.values[path] = value
        elif isinstance(value, list | tuple) and len(value) <= MOST_LIST and all(map(_plain, value)):
            self.values[path] = list(value)
        elif isinstance(value, type) and issubclass(value, Record):
            self.values[path] = value.name
        elif isinstance(value, torch.device | torch.dtype):
            self.values[path] = str(value)
        elif not (isinstance(value, set) and not value):
            raise Refused(f"at {path!r} it holds a {type(value).__name__}; tensors, numbers and texts are taken.")

    def _object(self, path: str, attributes: Mapping[str, Any], depth: int) -> None:
        """A module's parameters, buffers and children under their own names, as in its state dict; hooks left out."""
        for name, item in attributes.items():
            if name in ("_parameters", "_buffers", "_modules"):
                self.take(path, item, depth + 1)
            elif not name.endswith("_hooks") and "_hooks_" not in name and name != "_non_persistent_buffers_set":
                self.take(f"{path}.{name}" if path else name, item, depth + 1)

    def _tensor(self, path: str, value: Any) -> None:
        import torch

        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu" or value.is_complex():
            raise Refused(f"{path!r} is not a dense tensor of real numbers on the CPU.")
        n_bytes = value.numel() * value.element_size()
        self.n_bytes += n_bytes
        if n_bytes > self.size or self.n_bytes > 4 * self.size:
            raise Refused(f"{path!r} declares more numbers than the file has.")
        self.tensors[path] = value


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def confine(source: str, out: str) -> None:
    """Limit time and, on Linux, memory, and install the audit hook; there is no way back."""
    import os

    size = os.stat(source).st_size  # noqa: PTH116
    if sys.platform != "win32":
        import resource

        if sys.platform == "linux":  # others do not keep to it, and macOS refuses to set it
            with open("/proc/self/statm") as file:  # noqa: PTH123
                present = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (present + 6 * size + SPARE_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60 + size // (20 << 20),) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * size + SPARE_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own = {source, f"{out}/{TENSORS}", f"{out}/{VALUES}"}

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and (arguments[0] in own or isinstance(arguments[0], int)):
            return
        if event == "open" or event.startswith(_DENIED):
            raise Refused(f"reading it asked for {event} {arguments[:1]!r}.")

    sys.addaudithook(refuse)


def leave_the_network() -> None:
    """A network namespace of its own, where the system lets us; the audit hook stands in any case."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # CLONE_NEWUSER | CLONE_NEWNET


def _warm_up(out: str) -> None:
    """Import and compile everything that reading and writing uses, while that is still allowed."""
    import torch
    from safetensors.torch import save_file

    probe = f"{out}/probe"
    torch.save({"w": torch.ones(2, 2).to(torch.bfloat16), "v": torch.nn.Parameter(torch.ones(2))}, probe)
    with torch.serialization.safe_globals([(Record, "probe.Record"), set]):
        torch.load(probe, map_location="cpu", weights_only=True, mmap=False)
    save_file({"w": torch.ones(2)}, f"{out}/{TENSORS}")
    json.dumps({"probe": torch.float32.itemsize})


def main(source: str, out: str, objects: list[str]) -> int:
    """Confine this process, then convert; the exit code."""
    leave_the_network()
    _warm_up(out)
    confine(source, out)
    try:
        convert(source, out, objects)
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except Exception as error:  # whatever a hostile file provokes
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())[:250]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
