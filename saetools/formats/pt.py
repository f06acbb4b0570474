"""Layouts whose weights are a pickle (.pt): told apart without unpickling, and opened only in a sandbox, when allowed.

What a .pt file holds is first judged from its pickle's instructions, none of which is carried out: the texts in it (the
names of tensors are among them) and the functions it asks for. A file that asks for anything but what rebuilds tensors
is refused there. To open it, `pt_sandbox.py` runs as a process of its own (torch's weights-only unpickler, no network,
no new processes or files, limits on memory and time) and leaves the dense tensors as safetensors.
"""

import json
import os
import pickletools
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from saetools.errors import FormatError
from saetools.formats import pt_sandbox
from saetools.safeio import format_errors, load_safetensors, read_json

PT_SUFFIXES = (".pt", ".pth")
WEIGHT_SUFFIXES = (".safetensors", ".npz", *PT_SUFFIXES)
"""Of the files in which any library keeps weights."""
PICKLE_BYTES = 16 << 20  # of the pickle inside; weights lie beside it
SECONDS = 60
BYTES_PER_SECOND = 20 << 20  # of reading, on top of SECONDS


class PtNames(NamedTuple):
    """What the pickle of a .pt file mentions."""

    texts: frozenset[str]
    functions: frozenset[str]  # "module name" of each function or class that it asks for


class PtContent(NamedTuple):
    """What a .pt file holds, by dotted path; a single tensor has the path ""."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]  # numbers, texts, booleans, None, and lists of them
    classes: dict[str, str]  # of the objects in it, as "module.Name"; the object at the top has the path ""


def pt_names(path: Path) -> PtNames:
    """What the pickle of a .pt file mentions, read from its instructions without carrying them out."""
    with format_errors(path):
        texts, functions = set(), set()
        for name, argument, _ in pickletools.genops(_pickle_of(path)):
            if name.name == "STACK_GLOBAL":
                raise FormatError(f"{path} is a pickle of a protocol that torch.save does not write; it is not opened.")
            if name.name in ("GLOBAL", "INST"):
                functions.add(str(argument))
            elif isinstance(argument, str):
                texts.add(argument)
        return PtNames(frozenset(texts), frozenset(functions))


def mentions(path: Path, *texts: str, without: tuple[str, ...] = ()) -> bool:
    """Whether path is a .pt file that mentions all of these texts and none of `without`."""
    if path.suffix not in PT_SUFFIXES or not path.is_file():
        return False
    try:
        found = pt_names(path).texts
    except FormatError:
        return False
    return found >= set(texts) and not found & set(without)


def not_allowed(source: Path | str, what: str) -> FormatError:
    """The refusal of a source that needs allow_pt, with both ways to read it; `what` says why it does."""
    return FormatError(
        f"{source} {what}, and a pickle can run code of whoever wrote it: it was not opened. To read it in a sandbox "
        "that takes tensors alone, pass allow_pt=True to saetools.load, or convert it once: saetools convert --from-pt "
        f"{shlex.quote(str(source))} --out DIRECTORY"
    )


def read_pt(path: Path, allow: bool, layout: str) -> PtContent:
    """The content of a .pt file, through the sandbox. FormatError unless allowed, or where it is more than tensors."""
    if not allow:
        raise not_allowed(path, f"is of the layout of {layout}, whose weights are a pickle (.pt)")
    functions = pt_names(path).functions
    wrong = sorted(f for f in functions if not pt_sandbox.is_allowed(f))
    if wrong:
        raise FormatError(
            f"{path} is refused: its pickle asks for {', '.join(f.replace(' ', '.') for f in wrong[:5])}, which is not "
            "needed to rebuild tensors."
        )
    objects = sorted(f for f in functions if pt_sandbox.is_object(f))
    with tempfile.TemporaryDirectory(prefix="saetools-pt-") as directory:
        _run_sandbox(path, Path(directory), objects)
        described = read_json(Path(directory) / pt_sandbox.VALUES)
        tensors = load_safetensors(Path(directory) / pt_sandbox.TENSORS)
    return PtContent(tensors, described["values"], described["classes"])


def _run_sandbox(path: Path, out: Path, objects: list[str]) -> None:
    size = path.stat().st_size
    seconds = SECONDS + size // BYTES_PER_SECOND
    command = [sys.executable, "-I", pt_sandbox.__file__, str(path.absolute()), str(out), json.dumps(objects)]
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    environment = kept | {"OMP_NUM_THREADS": "1", "TMPDIR": str(out)}
    try:
        done = subprocess.run(command, env=environment, cwd=out, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise FormatError(f"{path} took longer than {seconds} s to read in the sandbox; it is refused.") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = re.sub(r"\s+", " ", said[-1])[:300] if said else f"the sandbox ended with code {done.returncode}"
        raise FormatError(f"{path} is refused: {reason}")


def _pickle_of(path: Path) -> bytes:
    """The pickle inside the zip archive that torch.save writes, after checking the archive's sizes."""
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise FormatError(f"{path} is not an archive as torch.save writes it; save it again with a present torch.")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
        if packed or sum(m.file_size for m in members) > size:
            raise FormatError(f"{path} is not an archive as torch.save writes it: its parts are compressed or overlap.")
        pickles = list(_named(members, "data.pkl"))
        if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
            raise FormatError(f"{path} is not an archive as torch.save writes it: it has no data.pkl of a usual size.")
        return archive.read(pickles[0])


def _named(members: list[zipfile.ZipInfo], name: str) -> Iterator[zipfile.ZipInfo]:
    return (member for member in members if member.filename.split("/")[-1] == name)
