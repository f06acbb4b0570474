"""Codes on disk: what was written is what encode gives, row by row; damage is named; nothing half-written."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saetools.activations.base import ActivationBatch
from saetools.atomic import committed_directory, write_json
from saetools.dictionaries.base import dictionary_class, make_dictionary
from saetools.errors import ConfigError, DataError, FormatError, RunError
from saetools.features import codes
from saetools.features.codes import read_codes, read_info, write_codes

D = 16


def batches(n: int = 5) -> Iterator[ActivationBatch]:
    draw = torch.Generator().manual_seed(0)
    for number in range(n):
        x_ND = torch.randn(7, D, generator=draw)
        where = torch.stack([torch.full((7,), number), torch.arange(7)], dim=1)
        yield ActivationBatch(x_ND, where, {"grad": torch.sin(3 * x_ND)})


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "matching_pursuit", "abs_topk", "gradient"])
def test_what_is_read_is_what_encode_gives(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "SHARD_VALUES", 50)
    dictionary = make_dictionary(dictionary_class(kind).examples()[0], D)
    info = write_codes(tmp_path / "c", dictionary, batches(), "made here", None, lambda n: f"doc {n}")
    assert read_info(tmp_path / "c") == info and info.n_rows == 35 and len(info.shards) > 1
    assert info.documents == {n: f"doc {n}" for n in range(5)}
    dense = torch.cat([part.code.to_dense() for part in read_codes(tmp_path / "c")])
    where = torch.cat([part.where_N2 for part in read_codes(tmp_path / "c")])
    expected = torch.cat([dictionary.encode(batch.x_ND, batch.fields).to_dense() for batch in batches()])
    assert torch.equal(dense, expected) and (dense != 0).any()
    assert torch.equal(where, torch.cat([batch.where_N2 for batch in batches()]))
    assert info.n_values == int((expected != 0).sum())


def test_half_precision(tmp_path: Path) -> None:
    dictionary = make_dictionary(dictionary_class("topk").examples()[0], D)
    write_codes(tmp_path / "c", dictionary, batches(), "made here", dtype="bfloat16")
    (part,) = read_codes(tmp_path / "c")
    assert part.code.values.dtype == torch.bfloat16
    large = [replace(batch, x_ND=batch.x_ND * 1e6) for batch in batches()]
    with pytest.raises(DataError, match=r"value .*e\+.., which float16 does not hold"):
        write_codes(tmp_path / "large", dictionary, large, "made here", dtype="float16")
    assert not (tmp_path / "large").exists()
    write_codes(tmp_path / "large", dictionary, large, "made here", dtype="bfloat16")


def test_what_fires_weakly_fires_in_half_precision(tmp_path: Path) -> None:
    """float16 ends at 6e-8: smaller codes were stored as zeros, which mean that nothing fires."""
    dictionary = make_dictionary(dictionary_class("topk").examples()[0], D)
    small = [replace(batch, x_ND=batch.x_ND * 1e-9) for batch in batches()]
    for dtype in ("float32", "float16", "bfloat16"):
        info = write_codes(tmp_path / dtype, dictionary, small, "made here", dtype=dtype)
        (part,) = read_codes(tmp_path / dtype)
        assert info.n_values == int((part.code.values != 0).sum()) > 0
        expected = torch.cat([dictionary.encode(batch.x_ND).to_ragged().values for batch in small])
        assert (part.code.values.float() - expected).abs().max() < 6e-8


def test_unknown_dtypes_and_versions(tmp_path: Path) -> None:
    dictionary = make_dictionary(dictionary_class("topk").examples()[0], D)
    with pytest.raises(ConfigError, match=r"unknown dtype 'float64'.*float16"):
        write_codes(tmp_path / "c", dictionary, batches(), "made here", dtype="float64")
    assert list(tmp_path.iterdir()) == []
    with committed_directory(tmp_path / "later") as directory:
        info = codes.CodesInfo(source="", kind="topk", n_features=3, spec=None, rows="", documents={}, shards=())
        write_json(directory / "codes.json", info.model_dump(mode="json") | {"version": 2})
    with pytest.raises(FormatError, match="version"):
        read_info(tmp_path / "later")


def test_nothing_half_written_and_damage_named(tmp_path: Path) -> None:
    dictionary = make_dictionary(dictionary_class("topk").examples()[0], D)

    def broken() -> Iterator[ActivationBatch]:
        yield from batches(2)
        raise DataError("the source broke")

    with pytest.raises(DataError):
        write_codes(tmp_path / "c", dictionary, broken(), "made here")
    assert list(tmp_path.iterdir()) == []
    write_codes(tmp_path / "c", dictionary, batches(), "made here")
    with pytest.raises(RunError, match="already exists"):
        write_codes(tmp_path / "c", dictionary, batches(), "made here")
    (shard,) = (tmp_path / "c").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated"):
        list(read_codes(tmp_path / "c"))


def test_names_of_many_documents_are_read_back(tmp_path: Path) -> None:
    """A million documents of a web corpus have 70 MB of names."""
    dictionary = make_dictionary(dictionary_class("topk").examples()[0], D)
    written = write_codes(tmp_path / "c", dictionary, batches(5), "here", document_name=lambda n: f"{n}" * (15 << 20))
    assert read_info(tmp_path / "c").documents == written.documents
