"""Pickles (.pt): named and not opened unless allowed; then tensors alone come out of the sandbox, and no code runs."""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saetools
from saetools.errors import FormatError
from saetools.formats import pt, pt_sandbox
from saetools.formats.pt import mentions, pt_names, read_pt

QWEN = {"W_enc": (9, 5), "W_dec": (5, 9), "b_enc": (9,), "b_dec": (5,)}


def weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) for name, shape in QWEN.items()}


class Trap:
    """Leaves a trace when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def with_pickle(path: Path, data: bytes) -> Path:
    """A .pt archive with this pickle in place of the one that torch.save wrote."""
    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            target.writestr(member, data if member.filename.endswith("data.pkl") else source.read(member))
    return path


def test_not_opened_unless_allowed(tmp_path: Path) -> None:
    file = tmp_path / "layer3.sae.pt"
    torch.save(weights(), file)
    with pytest.raises(FormatError, match="Qwen Scope") as error:
        saetools.load(file)
    assert "allow_pt=True" in str(error.value) and f"saetools convert --from-pt {file} --out" in str(error.value)
    file = file.rename(tmp_path / "layer 3.pt")
    with pytest.raises(FormatError) as error:
        saetools.load(file)
    assert f"saetools convert --from-pt '{file}' --out" in str(error.value), "as a shell takes it"


def test_the_sandbox_reads_tensors_and_says_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "layer3.sae.pt"
    torch.save(weights(), file)
    with pytest.raises(FormatError, match=r"do not say how many features fire per row\. Pass k=.*--k"):
        saetools.load(file, allow_pt=True)
    dictionary = saetools.load(file, allow_pt=True, k=2)
    assert torch.equal(dictionary.W_enc_FD, weights()["W_enc"]) and dictionary.provenance["layout"] == "Qwen Scope"


def test_side_effects_never_happen(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    traps: list[bytes] = []
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        traps += [pickle.dumps(held, protocol) for held in (Trap(trace), OrderedDict(w=Trap(trace)), [Trap(trace)])]
    traps.append(b"cos\nsystem\n(S'touch " + str(trace).encode() + b"'\ntR.")
    traps.append(b"c__builtin__\neval\n(S'1'\ntR.")
    traps.append(b"(S'touch " + str(trace).encode() + b"'\nios\nsystem\n.")
    for number, data in enumerate(traps):
        file = with_pickle(tmp_path / f"{number}.pt", data)
        for name in (file, tmp_path / f"raw{number}.pt"):
            name.write_bytes(data) if name is not file else None
            with pytest.raises(FormatError):
                saetools.load(name, allow_pt=True)
            with pytest.raises(FormatError):
                read_pt(name, True, "any")
    assert not trace.exists()
    pickle.loads(traps[0])
    assert trace.exists()  # the trap is one


def test_the_sandbox_itself_runs_nothing(tmp_path: Path) -> None:
    """The second fence, without the first: a pickle that asks for a function goes to the program directly."""
    trace = tmp_path / "trace"
    file = with_pickle(tmp_path / "trap.pt", pickle.dumps({"w": Trap(trace)}, 2))
    (tmp_path / "out").mkdir()
    with pytest.raises(FormatError, match=r"Unsupported|WeightsUnpickler|weights_only"):
        pt._run_sandbox(file, tmp_path / "out", [])
    assert not trace.exists()


ATTEMPTS = {
    "a process": "subprocess.run(['true'])",
    "a connection": "socket.create_connection(('127.0.0.1', 9))",
    "another file": "open('/etc/passwd')",
    "a file to write": "open(out + '/other', 'w')",
    "an import": "importlib.import_module('wave')",
    "compiled code": "eval('1')",
    "much memory": "bytearray(64 << 30)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits and namespaces of Linux")
@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_the_third_fence_stops_what_would_run(tmp_path: Path, attempt: str) -> None:
    """If torch's unpickler ran code after all: the process has given up what that code would need."""
    import subprocess

    torch.save(weights(), tmp_path / "w.pt")
    program = (
        f"import sys, subprocess, socket, importlib; sys.path.insert(0, {str(Path(pt_sandbox.__file__).parent)!r})\n"
        f"import pt_sandbox; source, out = {str(tmp_path / 'w.pt')!r}, {str(tmp_path)!r}\n"
        f"pt_sandbox.leave_the_network(); pt_sandbox.confine(source, out)\ntry:\n    {attempt}\n"
        "except (pt_sandbox.Refused, MemoryError): sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 7


HOSTILE: dict[str, Any] = {
    "sparse": {"w": torch.eye(4).to_sparse()},
    "compressed sparse": {"w": torch.eye(4).to_sparse_csr()},
    "complex": {"w": torch.ones(2, dtype=torch.complex64)},
    "far more than the file": {"w": torch.zeros(1).expand(1 << 40)},
    "no tensor": {"w": 3},
    "bytes": {"w": torch.ones(1), "x": b"abc"},
    "keys that are no names": {("a", 1): torch.ones(1)},
    "meta": {"w": torch.empty(3, device="meta")},
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("held", HOSTILE.values(), ids=HOSTILE)
def test_only_dense_tensors_numbers_and_texts(tmp_path: Path, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt, "_run_sandbox", lambda path, out, objects: pt_sandbox.convert(str(path), str(out), objects))
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises((FormatError, pt_sandbox.Refused, pickle.UnpicklingError)):
        read_pt(tmp_path / "w.pt", True, "any")


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match=r"asks for torch(\._utils)?\.\w+"):
        read_pt(tmp_path / "w.pt", True, "any")


def test_archives_that_unpack_to_more(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}." + b"\0" * (1 << 20))
    with pytest.raises(FormatError, match="compressed or overlap"):
        pt_names(tmp_path / "w.pt")
    assert not mentions(tmp_path / "w.pt", "w")


def test_unknown_pickles_are_listed_by_their_names(tmp_path: Path) -> None:
    torch.save({"lin.weight": torch.ones(2, 3)}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match=r"no known layout.*the names lin\.weight\."):
        saetools.load(tmp_path / "w.pt", allow_pt=True)
