"""Structured damage to files of dictionaries: what a careless or hostile writer could leave, one change at a time."""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    10**30,
    1e300,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "topk",
    "11",
]
ODD += [[], {}, [1, 2], {"k": 2}, "x" * 5000, "../../x", "\0", "ä\ud800".encode("utf-8", "replace").decode(), [[[[]]]]]
DTYPES = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "I64",
    "I32",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F4",
    "C64",
    "f32",
    "",
    "X",
    3,
    None,
]
SHAPES: list[Any] = [
    [],
    [0],
    [11],
    [6, 11],
    [11, 6],
    [66],
    [1, 66],
    [-1, 6],
    [2**62, 8],
    [2**63, 1],
    [1.5, 6],
    ["6"],
    6,
    None,
]
NAMES = [
    "W_enc",
    "W_dec",
    "b_enc",
    "b_dec",
    "threshold",
    "k",
    "",
    "x" * 9000,
    "../../evil",
    "/abs",
    "__metadata__",
    "a\0b",
]


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """One change to a JSON file."""
    values = json.loads(data)
    keys = list(values) if isinstance(values, dict) else []
    choice = draw.randrange(12)
    if choice < 5 and keys:
        values[draw.choice(keys)] = draw.choice(ODD)
    elif choice == 5 and keys:
        del values[draw.choice(keys)]
    elif choice == 6:
        values[draw.choice(NAMES)] = draw.choice(ODD)
    elif choice == 7:
        return draw.choice(
            [b"[" * 200_000, b'{"a":' * 50_000, b"\xff\xfe" + data, b"", data + b"}", data[: len(data) // 2]]
        )
    elif choice == 8:
        return b"\xef\xbb\xbf" + data
    elif choice == 9 and keys:
        key = draw.choice(keys)
        return data.rstrip()[:-1] + f', "{key}": {json.dumps(draw.choice(ODD))}}}'.encode()
    elif choice == 10 and keys and isinstance(values[keys[-1]], dict) and values[keys[-1]]:
        inner = values[keys[-1]]
        inner[draw.choice(list(inner))] = draw.choice(ODD)
    else:
        digits = b"9" * draw.choice([20, 5000])
        return data.replace(b": 6", b": " + digits, 1)
    return json.dumps(values).encode()


def mutate_safetensors(data: bytes, draw: random.Random) -> bytes:
    """One change to a safetensors file: its header's fields, its length, or the amount of data."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name, other = draw.choice(names), draw.choice(names)
    choice = draw.randrange(14)
    if choice == 0:
        header[name]["dtype"] = draw.choice(DTYPES)
    elif choice in (1, 2):
        header[name]["shape"] = draw.choice(SHAPES)
    elif choice in (3, 4):
        start, end = header[name]["data_offsets"]
        odd = [
            [start, end + 4],
            [start + 4, end],
            [end, start],
            [-4, end],
            [start, 2**63],
            [start],
            [start, end, end],
            None,
        ]
        header[name]["data_offsets"] = draw.choice([*odd, [0.0, 4.0], ["0", "4"], header[other]["data_offsets"]])
    elif choice == 5:
        header[draw.choice(NAMES)] = header.pop(name)
    elif choice == 6:
        del header[name]
    elif choice == 7:
        header[draw.choice(NAMES)] = draw.choice([header[name], *ODD])
    elif choice == 8:
        header[name] = draw.choice(ODD)
    elif choice == 9:
        header["__metadata__"] = draw.choice([{"a": 1}, {"a": "b"}, [], None, {"a": None}])
    elif choice == 10:
        body = draw.choice([body[:-1], body + b"\0", b"", body * 2])
    elif choice == 11:
        odd_length = draw.choice([0, 1, length - 1, length + 1, 2**63, 2**64 - 1, len(data)])
        return struct.pack("<Q", odd_length) + data[8:]
    elif choice == 12:
        text = draw.choice([b"[" * 100_000, b"{" * 9, b"null", b"[]", b'{"a":' * 30_000, b"\xff" * 40])
        return struct.pack("<Q", len(text)) + text + body
    else:
        header = dict(sorted(header.items(), key=lambda _: draw.random()))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def mutate_npz(data: bytes, draw: random.Random) -> bytes:
    """One change to a .npz archive: an array's header, a member's name, the archive's own fields."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    name = draw.choice(list(members))
    choice = draw.randrange(10)
    if choice < 4:
        (length,) = struct.unpack("<H", members[name][8:10])
        header, body = members[name][10 : 10 + length].decode(), members[name][10 + length :]
        changes = [("<f4", "|O"), ("<f4", "<U9"), ("<f4", "<f8"), ("<f4", "<c8"), ("<f4", "<i4"), ("False", "True")]
        changes += [
            ("(6,", "(9999999999,"),
            ("(11,", "(-1,"),
            ("'shape'", "'shap'"),
            ("{", "{{"),
            ("}", ""),
            ("(", "["),
        ]
        changes += [("'descr'", "'descr': __import__('os').abort(), 'x'"), ("'<f4'", "[('a', '<f4'), ('b', '|O')]")]
        header = header.replace(*draw.choice(changes), 1)
        text = header.encode()
        members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) & 0xFFFF) + text + body
    elif choice == 4:
        members[name] = draw.choice(
            [b"", members[name][:20], members[name] + b"\0" * 9, b"\x80\x04N.", members[name][:-1]]
        )
    elif choice == 5:
        members[draw.choice(["../../evil.npy", "/evil.npy", "extra.npy", "W_enc", "a\\b.npy"])] = members[name]
    elif choice == 6:
        del members[name]
    elif choice == 7:
        place = draw.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    elif choice == 8:
        return draw.choice([data[: draw.randrange(len(data))], data + b"x" * 100, b"PK\x05\x06" + b"\0" * 18, b""])
    target = io.BytesIO()
    pack = draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(target, "w", pack) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        if choice == 9:
            archive.writestr("bomb.npy", b"\0" * (4 << 20))
    return target.getvalue()


def mutate_pt(data: bytes, draw: random.Random) -> bytes:
    """One change to a .pt archive: its pickle's instructions, its storages, or the archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    name = next(n for n in members if n.endswith("data.pkl"))
    code, choice = members[name], draw.randrange(10)
    place = draw.randrange(2, len(code))
    if choice < 3:
        members[name] = code[:place] + bytes([draw.randrange(256)]) + code[place + 1 :]
    elif choice == 3:
        members[name] = code[:place] + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 5))) + code[place:]
    elif choice == 4:
        members[name] = draw.choice(
            [code[:place], code[place:], b"", b"(" * 50_000 + code, code * 2, b"\x80\x02" + b"]" * 9999]
        )
    elif choice == 5:
        swaps = [
            (b"FloatStorage", b"LongStorage"),
            (b"_rebuild_tensor_v2", b"_rebuild_qtensor"),
            (b"collections", b"builtins"),
        ]
        swaps += [(b"OrderedDict", b"eval"), (b"torch._utils", b"os"), (b"cpu", b"cuda:0"), (b"W_enc", b"W_dec")]
        members[name] = code.replace(*draw.choice(swaps))
    elif choice == 6:
        members[name] = code.replace(
            b"K" + bytes([11]), draw.choice([b"K\xff", b"J\xff\xff\xff\x7f", b"K\0", b"J\xff\xff\xff\xff"])
        )
    elif choice == 7:
        stored = draw.choice([n for n in members if "/data/" in n])
        members[stored] = draw.choice([b"", members[stored][:-1], members[stored] * 2])
    elif choice == 8:
        del members[draw.choice(list(members))]
    else:
        place = draw.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return target.getvalue()


def mutate_yaml(data: bytes, draw: random.Random) -> bytes:
    """One change to a YAML file."""
    odd = [
        b"k: !!python/object/apply:os.abort []\n",
        b"k: &a [*a]\n",
        b"k: [\n",
        b"- 1\n",
        b"",
        b"k: 1e999\n",
        b"\0",
        b"k: ~\n",
    ]
    return draw.choice(
        [*odd, b"? [a]\n: 1\n", data + b"more: 1\n", data.replace(b"3", b"-3"), b"k: " + b"9" * 5000, b"\xff"]
    )


MUTATE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutate_json,
    ".safetensors": mutate_safetensors,
    ".npz": mutate_npz,
    ".pt": mutate_pt,
    ".yaml": mutate_yaml,
}
