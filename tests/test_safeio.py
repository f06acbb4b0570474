"""Damaged bytes are refused by name: every flipped byte and every truncation of a committed directory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saetools.atomic import committed_directory, write_tensors, write_text
from saetools.errors import FormatError
from saetools.safeio import load_npz, load_safetensors, npy_header, read_json, verify_directory


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    with committed_directory(tmp_path / "d") as temporary:
        write_tensors(temporary / "t.safetensors", {"x": torch.arange(6.0).view(2, 3).T})
        write_text(temporary / "note.txt", "note")
    return tmp_path / "d"


def test_every_mutation_of_a_byte_is_detected(committed: Path) -> None:
    for name in ("t.safetensors", "note.txt", "manifest.json"):
        original = (committed / name).read_bytes()
        for position in range(len(original)):
            mutated = bytearray(original)
            mutated[position] ^= 1 << (position % 8)
            (committed / name).write_bytes(mutated)
            if name == "manifest.json" and json_equal(original, bytes(mutated)):
                continue  # white space: no content
            with pytest.raises(FormatError):
                verify_directory(committed)
        (committed / name).write_bytes(original)
    assert verify_directory(committed) == ["note.txt", "t.safetensors"]


def json_equal(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


def test_missing_extra_and_linked_files(committed: Path, tmp_path: Path) -> None:
    (committed / "extra").write_text("x")
    with pytest.raises(FormatError, match="extra is not in"):
        verify_directory(committed)
    assert verify_directory(committed, allow_extra=["extra"])
    (committed / "extra").unlink()
    text = (committed / "note.txt").read_text()
    (committed / "note.txt").unlink()
    with pytest.raises(FormatError, match=r"note\.txt is missing"):
        verify_directory(committed)
    (tmp_path / "elsewhere").write_text(text)
    (committed / "note.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="not a plain file"):
        verify_directory(committed)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\\b", "a/../../x", ""])
def test_a_manifest_cannot_name_files_outside(committed: Path, name: str) -> None:
    (committed / "manifest.json").write_text(json.dumps({"version": 1, "files": {name: {"bytes": 0, "xxh3_128": ""}}}))
    with pytest.raises(FormatError, match="outside its directory"):
        verify_directory(committed)


def test_safetensors_round_trip_and_own_memory(tmp_path: Path) -> None:
    tensors = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "int": torch.arange(4),
        "none": torch.zeros(0, 7),
        "s": torch.ones(()),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    loaded = load_safetensors(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_every_truncation_of_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.arange(3.0), "y": torch.arange(2)})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"x\.safetensors"):
            load_safetensors(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError):
        load_safetensors(path)


def test_mutated_safetensors_never_raise_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.arange(3.0), "y": torch.arange(2)})
    data, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(500):
        mutated = bytearray(data)
        for position in random.integers(0, len(data), 3):
            mutated[position] = random.integers(0, 256)
        path.write_bytes(mutated)
        try:
            load_safetensors(path)
        except FormatError as error:
            assert "x.safetensors" in str(error)


def test_npy(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(path, array)
    header = npy_header(path)
    assert (header.shape, header.is_fortran, header.dtype) == ((3, 4), False, np.float32)
    data = path.read_bytes()
    assert data[header.offset :] == array.tobytes()
    for length in range(0, len(data), 5):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"x\.npy"):
            npy_header(path)
    np.savez(tmp_path / "x.npz", a=array)
    assert np.array_equal(load_npz(tmp_path / "x.npz")["a"], array)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(FormatError, match="Python objects"):
        npy_header(path)
    with pytest.raises(FormatError, match="Python objects"):
        load_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"a": }', b"[" * 100_000], ids=range(5))
def test_bad_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_json_limits(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        read_json(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("[1, 2, 3]")
    with pytest.raises(FormatError, match="at most 4"):
        read_json(tmp_path / "x.json", max_bytes=4)
    assert read_json(tmp_path / "x.json") == [1, 2, 3]


def test_a_json_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_bytes(b'\xef\xbb\xbf{"k": 3}\r\n')
    assert read_json(tmp_path / "cfg.json") == {"k": 3}
