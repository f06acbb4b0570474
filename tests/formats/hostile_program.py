"""Loads hostile files under an audit hook: `python hostile_program.py DIRECTORY`. Prints what the hook saw, as JSON.

Every file is loaded as it is and with allow_pt; what the hook counts is code that a file asked to run, and writing
outside of the directory for temporary files.
"""

import io
import json
import os
import pickle
import stat
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saetools
from saetools.errors import FormatError

DENIED = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class")
DENIED += ("socket.connect", "os.symlink", "os.link", "os.chmod", "os.rename", "os.mkdir", "shutil.")


class Trap:
    """Makes a file when unpickled."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.trace,)


def archive(data: bytes, *more: str) -> bytes:
    """A .pt archive with this pickle, and members of further names."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        made.writestr("w/data.pkl", data)
        for name in ("w/data/0", "w/version", *more):
            made.writestr(name, b"3\n")
    return target.getvalue()


def write(at: Path) -> list[Path]:
    """Files and directories of every layout that hold a pickle, a tag or a name which asks for more than data."""
    trap = Trap(str(at / "trace"))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for number, held in enumerate((trap, {"W_enc": trap}, [trap, torch.ones(2)])):
            data = pickle.dumps(held, protocol)
            (at / f"raw-{protocol}-{number}.pt").write_bytes(data)
            (at / f"zip-{protocol}-{number}.pt").write_bytes(archive(data, "../../evil", "/evil", "w/../../evil"))
    objects = np.array([trap], dtype=object)
    np.savez(at / "objects.npz", W_enc=objects, W_dec=objects, b_enc=objects, b_dec=objects, threshold=objects)
    with zipfile.ZipFile(at / "names.npz", "w") as made:
        for name in ("../../evil.npy", "/evil.npy", "W_enc.npy"):
            made.writestr(name, pickle.dumps(trap))
    (at / "params.safetensors").write_bytes(pickle.dumps(trap))
    for name, file, text in (
        ("itda", "metadata.yaml", f"k: !!python/object/apply:os.mkdir ['{at / 'trace'}']\n"),
        ("saelens", "cfg.json", json.dumps({"d_in": 2, "d_sae": 4, "architecture": "__import__('os').abort()"})),
        ("ours", "config.json", '{"schema_version": 1, "dictionary": {"kind": "../../evil"}}'),
    ):
        (at / name).mkdir()
        (at / name / file).write_text(text)
        for other in ("atoms.pt", "atom_indices.pt", "sae_weights.safetensors", "model.safetensors"):
            (at / name / other).write_bytes(archive(pickle.dumps(torch.ones(2, 2), 2)))
    (at / "pipe").mkdir()
    os.mkfifo(at / "pipe" / "config.json")
    (at / "device").mkdir()
    (at / "device" / "sae.safetensors").symlink_to("/dev/zero")
    (at / "device" / "cfg.json").write_text('{"d_in": 2, "k": 1, "num_latents": 4}')
    (at / "loop").mkdir()
    (at / "loop" / "loop").symlink_to(at / "loop")
    (at / "loop" / "cfg.json").symlink_to(at / "loop" / "cfg.json")
    return sorted(at.iterdir())


def main(at: Path) -> None:
    """Write, load and tell."""
    sources = write(at)
    torch.save({"w": torch.ones(2)}, at / "good.pt")
    for allow in (False, True):  # what is imported or started on first use is so before the hook
        with suppress(FormatError):
            saetools.load(at / "good.pt", allow_pt=allow)
    seen: list[str] = []
    free, watching = (tempfile.gettempdir(), "/dev/null"), True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if arguments[2] else 0
            if writes and not os.fsdecode(arguments[0]).startswith(free):
                seen.append(f"open {arguments[0]!r}")
        elif event.startswith(DENIED):
            seen.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(watch)
    n_refused = 0
    for source in sources:
        for allow in (False, True):
            try:
                saetools.load(source, allow_pt=allow, k=1, strict=False)
            except FormatError:
                n_refused += 1
    watching = False
    mkdir_is_seen = len(seen)
    watching = True
    pickle.loads(pickle.dumps(Trap(str(at / "proof"))))
    assert len(seen) > mkdir_is_seen, "the hook sees what it is to see"
    assert stat.S_ISDIR((at / "proof").stat().st_mode)
    told = {"seen": seen[:mkdir_is_seen], "n_sources": len(sources), "n_refused": n_refused}
    print(json.dumps(told | {"trace": (at / "trace").exists(), "evil": (at.parent / "evil").exists()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
